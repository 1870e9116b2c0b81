use std::process::Command;

#[test]
fn numbers_on_the_command_line_have_limits() {
    for arguments in [
        &["drill", "--minutes", "0"][..],
        &["drill", "--minutes", "1000000000000"],
        &["drill", "--rate", "0"],
        &["drill", "--only", "kill:rabbitmq", "--together", "0"],
        &["bench", "--drained", "0"],
        &["bench", "--rounds", "0"],
        &["bench", "--seconds", "1"],
        &["bench", "--grown", "99999999999999"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_stack"))
            .args(arguments)
            .output()
            .expect("stack runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.starts_with("error: "), "{arguments:?}: {said}");
    }
}
