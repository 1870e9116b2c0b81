//! `hookctl completions`.

use tokio::process::Command;

const COMMANDS: [&str; 6] = ["setup", "send", "load", "doctor", "tail", "completions"];

#[tokio::test]
async fn every_shell_gets_a_script_with_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = Command::new(env!("CARGO_BIN_EXE_hookctl"))
            .args(["completions", shell])
            .env_clear()
            .output()
            .await
            .expect("hookctl runs");
        assert_eq!(output.status.code(), Some(0));
        let script = String::from_utf8(output.stdout).expect("text");
        for command in COMMANDS {
            assert!(script.contains(command), "{shell} lacks {command}");
        }
    }
}

#[tokio::test]
async fn bash_completes_with_the_script() {
    let script = r#"
        source <("$HOOKCTL" completions bash)
        COMP_WORDS=(hookctl do) COMP_CWORD=1
        _hookctl hookctl do hookctl
        echo "${COMPREPLY[@]}""#;
    let output = Command::new("bash")
        .args(["--norc", "-c", script])
        .env("HOOKCTL", env!("CARGO_BIN_EXE_hookctl"))
        .output()
        .await
        .expect("bash runs");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "doctor\n",
        "{output:?}"
    );
}
