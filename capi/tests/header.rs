//! The header, which is written by hand, says what the crate is: names, types, constants, layouts.

#![allow(clippy::unwrap_used)] // In tests, a panic is how failure is reported.

mod support;

use std::{collections::BTreeMap, fs, mem::offset_of};

use siltstone::{
    pool::{SiltstoneCreateOptions, SiltstoneOpenOptions},
    stat::SiltstoneStatFigures,
};
use support::{compiler, file, run};

/// The crate's source, all of it.
fn source() -> String {
    let files = fs::read_dir(file("src")).unwrap();
    files.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
}

fn header() -> String {
    fs::read_to_string(file("include/siltstone.h")).unwrap()
}

/// Compiles C declarations behind the header: they must agree with it.
fn compiles(declarations: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("declarations.c");
    fs::write(&path, format!("#include <siltstone.h>\n{declarations}")).unwrap();
    run(compiler().arg("-fsyntax-only").arg(path));
}

/// Functions by name: their declarations in C, made from the crate's source.
fn functions() -> BTreeMap<String, String> {
    let source = source();
    let definitions = source.split("extern \"C\" fn ").skip(1);
    let declaration = |definition: &str| {
        let (signature, _) = definition.split_once('{').unwrap();
        let (name, rest) = signature.split_once('(').unwrap();
        let (arguments, result) = rest.rsplit_once(')').unwrap();
        let arguments = arguments.split(',').filter(|argument| !argument.trim().is_empty());
        let types = arguments.map(|argument| c_type(argument.split_once(':').unwrap().1));
        let types: Vec<_> = types.collect();
        let types = if types.is_empty() { "void".into() } else { types.join(", ") };
        let result = result.trim().strip_prefix("->").map_or("void".into(), c_type);
        (name.to_owned(), format!("{result} {name}({types});\n"))
    };
    definitions.map(declaration).collect()
}

/// A type in C, from what it is in Rust.
fn c_type(rust: &str) -> String {
    let rust = rust.trim();
    if let Some(target) = rust.strip_prefix("*const ") {
        return format!("{} const *", c_type(target));
    }
    if let Some(target) = rust.strip_prefix("*mut ") {
        return format!("{} *", c_type(target));
    }
    match rust {
        "c_char" => "char".into(),
        "c_int" => "int".into(),
        "c_void" => "void".into(),
        "u32" => "uint32_t".into(),
        "u64" => "uint64_t".into(),
        "usize" => "size_t".into(),
        // SiltstonePool is siltstone_pool.
        own => {
            assert!(own.starts_with("Siltstone"), "{own} has no counterpart in C");
            let words = own.chars().flat_map(|letter| {
                let gap = letter.is_uppercase().then_some('_');
                gap.into_iter().chain(letter.to_lowercase())
            });
            words.skip(1).collect()
        }
    }
}

/// Names of functions that the header declares.
fn declared() -> Vec<String> {
    let header = header();
    let words =
        header.split(|letter: char| !(letter.is_ascii_alphanumeric() || "_(".contains(letter)));
    let calls = words.filter_map(|word| word.split_once('('));
    let names = calls.map(|(name, _)| name.to_owned());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("siltstone_")).collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn the_header_declares_every_function_and_no_other() {
    let functions: Vec<_> = functions().into_keys().collect();
    assert!(functions.len() > 20, "{functions:?}");
    assert_eq!(declared(), functions);
}

/// A second declaration of a function that does not agree with the first is an error in C.
#[test]
fn every_function_has_the_types_that_the_header_says() {
    compiles(&functions().into_values().collect::<String>());
}

#[test]
fn a_declaration_with_another_type_would_be_noticed() {
    let wrong = functions()["siltstone_grow"].replace("uint64_t", "uint32_t");
    let noticed = std::panic::catch_unwind(|| compiles(&wrong));
    assert!(noticed.is_err(), "{wrong}");
}

#[test]
fn constants_have_the_same_values_on_both_sides() {
    let number = |text: &str| text.trim().trim_end_matches(';').parse::<u32>().unwrap();
    let source = source();
    let lines = source.lines().filter_map(|line| line.strip_prefix("pub const SILTSTONE_"));
    let of_crate = lines.map(|line| {
        let (name, rest) = line.split_once(':').unwrap();
        (name.to_owned(), number(rest.split_once('=').unwrap().1))
    });
    let header = header();
    let of_header = header.split("SILTSTONE_").filter_map(|piece| {
        let (name, rest) = piece.split_once(" = ")?;
        let is_name = name.chars().all(|letter| letter.is_ascii_uppercase() || letter == '_');
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        is_name.then(|| (name.to_owned(), number(&digits)))
    });
    let of_crate: BTreeMap<_, _> = of_crate.collect();
    assert!(of_crate.len() > 20, "{of_crate:?}");
    assert_eq!(of_header.collect::<BTreeMap<_, _>>(), of_crate);
}

/// What stands between the lines that open and close a block of C.
fn c_block(text: &str) -> String {
    let (_, rest) = text.split_once("```c\n").unwrap();
    rest.split_once("```").unwrap().0.into()
}

#[test]
fn what_the_documents_show_is_c() {
    let readme = c_block(&fs::read_to_string(file("../README.md")).unwrap());
    let page = fs::read_to_string(file("src/lib.rs")).unwrap();
    let page = page.lines().map(|line| line.trim_start_matches("//!").to_owned() + "\n");
    let page = c_block(&page.collect::<String>().replace(" ```", "```"));
    compiles(&format!(
        "#include <stdio.h>\n\
         void readme(const char *path);\nvoid readme(const char *path) {{\n{readme}\n}}\n\
         void page(void);\nvoid page(void) {{\n{page}\n}}\n"
    ));
}

macro_rules! layout {
    ($name:literal, $type:ty, [$($field:ident),* $(,)?]) => {{
        let mut checks = format!(
            "_Static_assert(sizeof({}) == {}, \"size of {}\");\n",
            $name, size_of::<$type>(), $name
        );
        let mut end = 0;
        $(
            let offset = offset_of!($type, $field);
            // No padding, and no field left out: what the crate reads and writes as bytes is all fields.
            assert_eq!(offset, end, "{}.{}", $name, stringify!($field));
            end += size_of_field(|structure: &$type| size_of_val(&structure.$field));
            checks += &format!(
                "_Static_assert(offsetof({0}, {1}) == {2}, \"{0}.{1}\");\n\
                 _Static_assert(sizeof((({0} *)0)->{1}) == {3}, \"{0}.{1}\");\n",
                $name, stringify!($field), offset, end - offset
            );
        )*
        assert_eq!(end, size_of::<$type>(), $name);
        checks
    }};
}

fn size_of_field<T: Default>(size: impl FnOnce(&T) -> usize) -> usize {
    size(&T::default())
}

#[test]
fn structures_have_the_same_layout_on_both_sides_and_no_padding() {
    let create = layout!(
        "siltstone_create_options",
        SiltstoneCreateOptions,
        [struct_bytes, flags, size_bytes, index_memory_bytes]
    );
    let open = layout!(
        "siltstone_open_options",
        SiltstoneOpenOptions,
        [struct_bytes, flags, staging_bytes, frame_cache_bytes, page_cache_bytes]
    );
    let stat = layout!(
        "siltstone_stat_figures",
        SiltstoneStatFigures,
        [
            struct_bytes,
            fullness,
            size_bytes,
            stored_bytes,
            garbage_bytes,
            overhead_bytes,
            metadata_bytes,
            reserved_bytes,
            pending_bytes,
            free_bytes,
            unusable_bytes,
            used_percent,
            provisioned_bytes,
            logical_bytes,
            unique_bytes,
            snapshot_bytes,
            dedup_ratio,
            compression_ratio,
        ]
    );
    compiles(&(create + &open + &stat));
}
