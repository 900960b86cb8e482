//! Wrong settings: one clear line each, and nothing is started.

use anyhow::Result;
use serde_json::Value;

use crate::cluster::dodo_program;
use crate::sentinel::LEADER;

#[test]
fn wrong_settings_are_one_clear_line() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let rules = dir.path().join("rules.yaml");
    std::fs::write(
        &rules,
        format!("absent_after: 1m\nabsent_severity: info\nrules:\n{}", LEADER.replace("below", "beneath")),
    )?;
    let rules = rules.display().to_string();
    let run = |arguments: &[&str], env: &[(&str, &str)]| {
        let mut command = std::process::Command::new(dodo_program());
        command.arg("sentinel").args(arguments).envs(env.iter().copied()).current_dir(dir.path());
        let out = command.env("DODO_LOG_DIR", dir.path()).output().expect("dodo runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        (out.status.code(), text(&out.stdout), text(&out.stderr))
    };
    for (arguments, env, expected) in [
        (vec!["--rules", &rules], vec![], "rule no-leader: rules[0].comparison: unknown variant `beneath`"),
        (vec!["--check", "--rules", "/no/such/rules"], vec![], "cannot read the rules /no/such/rules"),
        (vec![], vec![("DODO_SENTINEL_RULES", "/no/such/rules")], "--print-rules"),
        (vec!["--check"], vec![("DODO_SLACK_WEBHOOK", "s3cr3t")], "DODO_SLACK_WEBHOOK"),
        (vec!["--check"], vec![("DODO_SMTP_URL", "smtp://u:s3cr3t@h")], "DODO_MAIL_FROM"),
        (vec!["--check"], vec![("DODO_MAIL_TO", "a@b.example")], "DODO_SMTP_URL"),
    ] {
        let (code, _, error) = run(&arguments, &env);
        assert_eq!(code, Some(2), "{error}");
        assert!(error.lines().count() == 1 && error.contains(expected) && !error.contains("s3cr3t"), "{error}");
    }
    let (code, _, error) = run(&["--every-ms", "1"], &[]);
    assert!(code == Some(2) && error.contains("--every-ms"), "{error}");
    std::fs::write(dir.path().join("file"), "")?;
    let (code, _, error) = run(&["--spool", "file/spool"], &[]);
    let last = error.lines().last().unwrap_or_default();
    assert!(code == Some(1) && last.contains("DODO_SENTINEL_SPOOL"), "{error}");
    let (code, _, error) = run(&[], &[("DODO_REDIS_URL", "not a url")]);
    assert!(code == Some(1) && error.contains("DODO_REDIS_URL") && !error.contains("panicked"), "{error}");

    // What is printed is what is checked, as text and as JSON.
    let (code, printed, _) = run(&["--print-rules"], &[]);
    assert_eq!(code, Some(0));
    std::fs::write(dir.path().join("copy.yaml"), printed)?;
    let (code, said, error) = run(&["--check", "--json", "--rules", "copy.yaml"], &[]);
    assert_eq!(code, Some(0), "{error}");
    let checked: Value = serde_json::from_str(&said)?;
    let (_, printed, _) = run(&["--print-rules", "--json"], &[]);
    let printed: Value = serde_json::from_str(&printed)?;
    assert_eq!(checked["rules"].as_u64(), printed["rules"].as_array().map(|rules| rules.len() as u64));

    // `dodo up` refuses to start with them too, before anything runs.
    let data = tempfile::Builder::new().prefix("dodo-up-").tempdir()?;
    std::fs::set_permissions(data.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let up = |arguments: &[&str]| {
        let mut command = std::process::Command::new(dodo_program());
        command.args(["up", "--port", "0", "--exit-when-done", "--data"]).arg(data.path().join("up")).args(arguments);
        command.env("DODO_SENTINEL_RULES", "/no/such/rules").output()
    };
    let out = up(&[])?;
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(1) && error.lines().count() == 1 && error.contains("/no/such/rules"), "{error}");
    assert!(!data.path().join("up").exists());
    // Told to start none, it does without.
    let out = up(&["--no-sentinel"])?;
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(data.path().join("up/log").exists() && !data.path().join("up/log/sentinel").exists());
    Ok(())
}
