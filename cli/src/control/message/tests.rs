use clap::Parser;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::args::{Arguments, Command};

fn command(line: &[&str]) -> PoolCommand {
    let line = ["siltstone"].iter().chain(line);
    match Arguments::try_parse_from(line).unwrap().command {
        Command::OnPool(command) => command,
        other => panic!("{other:?} is not a command on a pool"),
    }
}

fn identity() -> PoolIdentity {
    serde_json::from_value(json!({ "device": 5, "inode": 7 })).unwrap()
}

fn encoded(line: &[&str]) -> Value {
    let request = Request { version: VERSION, pool: identity(), command: command(line) };
    serde_json::to_value(request).unwrap()
}

/// If this fails, servers and commands of this version do not understand each other any more:
/// raise [`VERSION`].
#[test]
fn commands_look_on_the_wire_as_those_of_this_version() {
    assert_eq!(VERSION, 7);
    let pool = json!({ "path": "p" });
    for (line, expected) in [
        (
            &["volume", "create", "p", "v", "--size", "4K", "--level", "3", "--frame", "8K"][..],
            json!({ "volume": { "create": {
                "pool": pool, "name": "v", "size": 4096, "compression": { "level": "3", "frame": "8K" } } } }),
        ),
        (
            &["volume", "list", "p", "--json"],
            json!({ "volume": { "list": { "pool": pool, "json": true } } }),
        ),
        (
            &["volume", "resize", "p", "v", "--size", "1M"],
            json!({ "volume": { "resize": { "pool": pool, "name": "v", "size": 1_048_576,
                "shrink": false } } }),
        ),
        (
            &["volume", "set", "p", "v", "--level", "-1..9"],
            json!({ "volume": { "set": { "pool": pool, "name": "v",
                "compression": { "level": "-1..9", "frame": null } } } }),
        ),
        (
            &["volume", "delete", "p", "v"],
            json!({ "volume": { "delete": { "pool": pool, "name": "v", "snapshots": false } } }),
        ),
        (
            &["snapshot", "create", "p", "v", "w@s"],
            json!({ "snapshot": { "create": { "pool": pool, "snapshots": ["v", "w@s"] } } }),
        ),
        (
            &["snapshot", "list", "p", "v"],
            json!({ "snapshot": { "list": { "pool": pool, "volume": "v", "json": false } } }),
        ),
        (
            &["snapshot", "delete", "p", "v@s"],
            json!({ "snapshot": { "delete": { "pool": pool, "snapshots": ["v@s"] } } }),
        ),
        (
            &["snapshot", "rollback", "p", "v@s"],
            json!({ "snapshot": { "rollback": { "pool": pool, "snapshot": "v@s" } } }),
        ),
        (
            &["clone", "p", "v@s", "w"],
            json!({ "clone": { "pool": pool, "snapshot": "v@s", "name": "w" } }),
        ),
        (
            &["import", "p", "v", "f"],
            json!({ "import": { "pool": pool, "volume": "v", "file": "f", "each": [], "size": null,
                "resume": false, "force": false, "compression": { "level": null, "frame": null } } }),
        ),
        (
            // How images are read is for who opens them.
            &[
                "import",
                "p",
                "--resume",
                "--force",
                "--format",
                "raw",
                "--backing",
                "--each",
                "f",
                "g",
            ],
            json!({ "import": { "pool": pool, "volume": null, "file": null, "each": ["f", "g"],
                "size": null, "resume": true, "force": true, "compression": { "level": null, "frame": null } } }),
        ),
        (
            &["export", "p", "v", "-", "--salvage"],
            json!({ "export": { "pool": pool, "volume": "v", "file": "-", "force": false,
                "salvage": true, "resume": false } }),
        ),
        (&["gc", "p"], json!({ "gc": { "pool": pool } })),
        (&["grow", "p"], json!({ "grow": { "pool": pool, "size": null } })),
        (&["grow", "p", "--size", "1M"], json!({ "grow": { "pool": pool, "size": 1_048_576 } })),
        (&["stat", "p"], json!({ "stat": { "pool": pool, "json": false, "quick": false } })),
        (
            &["scrub", "p", "--rate", "1K/s", "--all", "--control", "elsewhere"],
            json!({ "scrub": { "pool": pool, "rate": 1024,
                "listing": { "json": false, "all": true } } }),
        ),
    ] {
        let request = encoded(line);
        assert_eq!(request["command"], expected, "{line:?}");
        let decoded = Request::decode(&serde_json::to_vec(&request).unwrap(), identity()).unwrap();
        assert_eq!(serde_json::to_value(decoded).unwrap(), request);
    }
}

#[test]
fn requests_of_other_versions_for_other_pools_and_with_more_in_them_are_refused() {
    let refusal = |change: &dyn Fn(&mut Value)| {
        let mut request = encoded(&["export", "p", "v", "f"]);
        change(&mut request);
        Request::decode(request.to_string().as_bytes(), identity()).unwrap_err()
    };
    // Whatever else is in it: another version may say anything.
    let newer = refusal(&|request| {
        request["version"] = json!(VERSION + 1);
        request["command"] = json!({ "fly": null });
    });
    assert!(matches!(newer, Refusal::Version { version } if version == VERSION + 1), "{newer}");
    let other = refusal(&|request| request["pool"]["inode"] = json!(8));
    assert!(matches!(other, Refusal::OtherPool), "{other}");
    // An option that is not known is not ignored.
    let unknown = refusal(&|request| request["command"]["export"]["backwards"] = json!(true));
    assert!(unknown.to_string().contains("backwards"), "{unknown}");
    let missing = refusal(&|request| request["command"] = json!({}));
    assert!(matches!(missing, Refusal::Control(ControlError::Senseless { .. })), "{missing}");
}

#[test]
fn failures_keep_their_status_and_their_sentence() {
    for error in [CliError::Interrupted, CliError::ImageEmpty { file: "größe".into() }] {
        let packet = serde_json::to_vec(&Failure::from(&error)).unwrap();
        let failure: CliError = decode::<Failure>(&packet).unwrap().into();
        assert_eq!(failure.exit_status(), error.exit_status());
        assert_eq!(failure.to_string(), error.to_string());
    }
    let long = CliError::ImageEmpty { file: "ü".repeat(MAX_TEXT_BYTES) };
    let Failure { sentence, .. } = Failure::from(&long);
    assert!(long.to_string().starts_with(&sentence) && sentence.len() > MAX_TEXT_BYTES - 4);
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Request::decode(&bytes, identity());
        let _ = decode::<Answer<'_>>(&bytes);
        let _ = decode::<Opened>(&bytes);
    }

    #[test]
    fn a_changed_request_is_a_request_or_refused(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = encoded(&["import", "p", "v", "f", "--size", "1M"]).to_string().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = Request::decode(&bytes, identity());
        bytes.truncate(cut.index(bytes.len()));
        prop_assert!(Request::decode(&bytes, identity()).is_err(), "a part is no request");
    }

    #[test]
    fn text_arrives_whole_in_messages_that_fit(text in "[\\x00-\\x1fa-zäöü€😀]{0,9000}") {
        let mut arrived = String::new();
        for piece in pieces(&text) {
            let message = Answer::Print(Cow::Borrowed(piece));
            let packet = serde_json::to_vec(&message).unwrap();
            prop_assert!(packet.len() <= super::super::packet::MAX_PACKET_BYTES);
            let Answer::Print(piece) = decode(&packet).unwrap() else { unreachable!() };
            arrived += &piece;
        }
        prop_assert_eq!(arrived, text);
    }
}
