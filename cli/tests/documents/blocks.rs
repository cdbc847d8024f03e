//! Finds the commands of a document: in indented and fenced blocks, and between backquotes.

/// Languages of fenced blocks that hold no commands.
const CODE: [&str; 5] = ["rust", "c", "toml", "text", "hexdump"];
/// What the first word of a block's first line is if all of its lines are commands.
const PROGRAMS: [&str; 16] = [
    "siltstone",
    "cargo",
    "capi/install.sh",
    "cc",
    "cp",
    "export",
    "fuzz/run.sh",
    "mkdir",
    "nbdinfo",
    "perf",
    "qemu-img",
    "systemctl",
    "torture/mutations/run.sh",
    "valgrind",
    ".ci/concurrency",
    "cd",
];
/// How a command of a block begins that shows output as well.
const PROMPT: &str = "$ ";

/// Indented or fenced lines of a document.
#[derive(Debug)]
pub(super) struct Block {
    /// Its first line's number, from 1.
    pub(super) line: usize,
    language: String,
    lines: Vec<String>,
}

/// A command of a document.
#[derive(Clone, Debug)]
pub(super) struct Command {
    /// Its line's number, from 1.
    pub(super) line: usize,
    /// All of it: lines that end with a backslash go on.
    pub(super) text: String,
    /// What it prints, if the document shows that.
    pub(super) output: Vec<String>,
}

/// What a block is.
pub(super) enum Content {
    Commands(Vec<Command>),
    /// Code in a language that its fence names.
    Code,
    /// Neither: output, a file, a formula.
    Shown(Vec<String>),
}

/// How many blank lines are before an indented one, if that comes next: a block goes on over them.
fn lines_to_next_indented<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Option<usize> {
    let mut blank = 0;
    for (_, line) in lines {
        match line.trim().is_empty() {
            true => blank += 1,
            false => return line.starts_with("    ").then_some(blank),
        }
    }
    None
}

/// All blocks of a document.
pub(super) fn blocks(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = text.lines().enumerate().peekable();
    let mut follows_blank = true;
    while let Some((number, line)) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let mut block =
                Block { line: number + 2, language: language.into(), lines: Vec::new() };
            for (_, line) in lines.by_ref().take_while(|(_, line)| !line.starts_with("```")) {
                block.lines.push(line.into());
            }
            blocks.push(block);
        } else if let (true, Some(first)) = (follows_blank, line.strip_prefix("    ")) {
            let mut block =
                Block { line: number + 1, language: String::new(), lines: vec![first.into()] };
            while let Some(blank) = lines_to_next_indented(lines.clone()) {
                lines.by_ref().take(blank).for_each(|_| block.lines.push(String::new()));
                block.lines.extend(lines.next().map(|(_, line)| line[4..].to_owned()));
            }
            block.outdent();
            blocks.push(block);
        }
        follows_blank = line.trim().is_empty();
    }
    blocks
}

impl Block {
    /// Within a list, a block is indented by more.
    fn outdent(&mut self) {
        let lines = self.lines.iter().filter(|line| !line.is_empty());
        let least = lines.map(|line| line.len() - line.trim_start().len()).min().unwrap_or(0);
        let texts = self.lines.iter_mut().filter(|line| !line.is_empty());
        texts.for_each(|line| _ = line.drain(..least));
    }

    /// What it is.
    pub(super) fn content(&self) -> Content {
        if CODE.contains(&self.language.as_str()) {
            return Content::Code;
        }
        let shows_output = self.lines.iter().any(|line| line.starts_with(PROMPT));
        let first_word = self.lines.first().and_then(|line| line.split(' ').next());
        let is_command = first_word.is_some_and(|word| {
            PROGRAMS.contains(&word) || (word.contains('=') && word.starts_with(char::is_uppercase))
        });
        if !shows_output && !is_command {
            return Content::Shown(self.lines.clone());
        }
        let mut commands: Vec<Command> = Vec::new();
        for (line, text) in (self.line..).zip(&self.lines) {
            let goes_on = |command: &Command| command.text.ends_with('\\');
            match (commands.last_mut(), text.strip_prefix(PROMPT)) {
                (Some(command), None) if goes_on(command) => {
                    command.text.push('\n');
                    command.text += text;
                }
                (Some(command), None) if shows_output => command.output.push(text.clone()),
                (_, prompted) => commands.push(Command {
                    line,
                    text: prompted.unwrap_or(text).into(),
                    output: Vec::new(),
                }),
            }
        }
        Content::Commands(commands)
    }
}

/// What stands between backquotes in the text of a document, with its line.
pub(super) fn quoted(text: &str) -> Vec<Command> {
    let mut found = Vec::new();
    let mut paragraph = String::new();
    let mut begin = 1;
    let mut is_code = false;
    for (line, text) in (1..).zip(text.lines()).chain([(0, "")]) {
        is_code ^= text.starts_with("```");
        let is_text = !is_code && !text.starts_with("    ") && !text.starts_with("```");
        if !is_text || text.is_empty() || text.starts_with('|') {
            let rows = if text.starts_with('|') && is_text { text } else { "" };
            for (text, line) in [(paragraph.as_str(), begin), (rows, line)] {
                found.extend(text.split('`').skip(1).step_by(2).map(|quoted| Command {
                    line,
                    text: quoted.trim().into(),
                    output: Vec::new(),
                }));
            }
            paragraph.clear();
            begin = line + 1;
        } else {
            paragraph += text.trim_start();
            paragraph.push(' ');
        }
    }
    found
}
