//! Settings of stores that cannot work, and stores that do not answer, as commands say it.

use std::path::Path;

use crate::process::{BAD_REQUEST, TLS_ALERT, answering, nobody, ringmaster, said};

const KEYS: [(&str, &str); 2] =
    [("AWS_ACCESS_KEY_ID", "somebody"), ("AWS_SECRET_ACCESS_KEY", "k4J9wQ2mZ7xT1vB6")];
/// So that requests that are expected to fail do so soon.
const SOON: (&str, &str) = ("RINGMASTER_STORE_PATIENCE_SECONDS", "0.3");
const LIST: [&str; 3] = ["checkpoints", "ls", "s3://bucket/runs"];

fn list(more: &[(&str, &str)]) -> (i32, String) {
    said(
        &ringmaster(&LIST)
            .envs(KEYS)
            .env(SOON.0, SOON.1)
            .envs(more.iter().copied())
            .output()
            .unwrap(),
    )
}

/// `AWS_ENDPOINT_URL=localhost:9000` made the store's library panic.
#[test]
fn an_endpoint_without_a_scheme_is_refused_by_its_variable() {
    for name in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"] {
        let (code, text) = list(&[(name, "localhost:9000")]);
        let expected = format!("{name}=localhost:9000 does not begin with http:// or https://");
        assert!(code == 2 && text.contains(&expected), "{code}: {text}");
    }
    let google = ringmaster(&["checkpoints", "ls", "gs://bucket/runs"])
        .env("GOOGLE_BASE_URL", "localhost:4443")
        .output();
    let (code, text) = said(&google.unwrap());
    assert!(code == 2 && text.contains("GOOGLE_BASE_URL=localhost:4443 does not"), "{text}");
    let azure = ringmaster(&["checkpoints", "ls", "az://container/runs"])
        .envs([("AZURE_STORAGE_ENDPOINT", "localhost:10000"), ("AZURE_STORAGE_ACCOUNT_NAME", "me")])
        .output();
    let (code, text) = said(&azure.unwrap());
    assert!(
        code == 2 && text.contains("AZURE_STORAGE_ENDPOINT=localhost:10000 does not"),
        "{text}"
    );
}

#[test]
fn the_scheme_is_hinted_at_where_it_is_the_other_one() {
    let tls = format!("http://{}", answering(TLS_ALERT));
    let (_, text) = list(&[("AWS_ENDPOINT_URL_S3", &tls)]);
    assert!(text.contains("if it is behind TLS, write https:// in AWS_ENDPOINT_URL_S3"), "{text}");
    let plain = format!("https://{}", answering(BAD_REQUEST));
    let (_, text) = list(&[("AWS_ENDPOINT_URL", &plain)]);
    assert!(text.contains("speaks no TLS") && text.contains("write http:// in AWS_ENDPOINT_URL"));
}

#[test]
fn a_proxy_that_does_not_answer_is_named_with_its_variable() {
    let proxy = format!("http://{}", nobody());
    let store = ("AWS_ENDPOINT_URL", "http://store.invalid:9000");
    let (_, text) = list(&[store, ("HTTP_PROXY", &proxy)]);
    let expected = format!("through the proxy {proxy} (HTTP_PROXY)");
    assert!(text.contains(&expected) && text.contains("NO_PROXY"), "{text}");
    // Past it the name cannot be resolved.
    let (_, text) = list(&[store, ("HTTP_PROXY", &proxy), ("NO_PROXY", "store.invalid")]);
    assert!(!text.contains("proxy") && text.contains("cannot be resolved"), "{text}");
    let (code, text) = list(&[store, ("https_proxy", "socks5://127.0.0.1:1080")]);
    assert!(code == 2 && text.contains("https_proxy=socks5://127.0.0.1:1080: "), "{code}: {text}");
}

/// What most people have: `aws configure` was run, and the variables are not set.
#[test]
fn credentials_that_are_not_read_are_named_with_the_command_that_hands_them_over() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".aws")).unwrap();
    let file = home.path().join(".aws/credentials");
    std::fs::write(&file, "[default]\naws_access_key_id = somebody\n").unwrap();
    let look = |more: &[(&str, &str)]| {
        let endpoint = format!("http://{}", nobody());
        let mut command = ringmaster(&LIST);
        command.env("HOME", home.path()).env("AWS_ENDPOINT_URL", endpoint);
        said(&command.envs(more.iter().copied()).output().unwrap())
    };
    let (code, text) = look(&[]);
    assert!(code == 2 && text.contains(&format!("{} is not read", file.display())), "{text}");
    assert!(text.contains("eval \"$(aws configure export-credentials --format env)\""), "{text}");
    let (_, text) = look(&[("AWS_PROFILE", "team")]);
    assert!(text.contains("AWS_PROFILE=team and ") && text.contains("--profile team"), "{text}");
    std::fs::remove_file(&file).unwrap();
    let (_, text) = look(&[]);
    assert!(text.contains("there are no credentials; set AWS_ACCESS_KEY_ID"), "{text}");
}

/// A job whose data is in S3, written into `folder`.
fn manifest(folder: &Path) -> String {
    let yaml = "apiVersion: ringmaster/v1\nkind: TrainJob\nmetadata: {name: tiny}\nspec:\n  \
                resources: {ranks: 1}\n  model: {name: ViT-B-32}\n  \
                data: {train: [\"s3://bucket/train/0.tar\"], lanes: 8}\n  loss: {kind: siglip}\n  \
                optimizer: {lr: 1.0e-3}\n  schedule: {warmup_steps: 2, steps: 20}\n  \
                batch: {global: 64}\n  checkpoint: {uri: checkpoints}\n";
    let path = folder.join("job.yaml");
    std::fs::write(&path, yaml).unwrap();
    path.display().to_string()
}

/// The ranks found it out, one attempt after the other.
#[test]
fn a_job_whose_stores_the_settings_do_not_lead_to_is_refused_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = manifest(folder.path());
    for (name, value, said_of_it) in [
        ("AWS_ENDPOINT_URL", "localhost:9000", "does not begin with http:// or https://"),
        ("AWS_EC2_METADATA_DISABLED", "true", "there are no credentials"),
    ] {
        let mut command = ringmaster(&["train", &manifest]);
        // No rank is started; if one were, it would end at once.
        command.env("RINGMASTER_WORKER", "/bin/false").env("HOME", folder.path());
        let output = command.env(name, value).current_dir(folder.path()).output().unwrap();
        let (code, text) = said(&output);
        assert!(code == 2 && text.contains(said_of_it), "{code}: {text}");
        assert!(text.contains("spec.data.train: s3://bucket/train/0.tar"), "{text}");
        assert!(!folder.path().join("runs").exists(), "something was started: {text}");
    }
}

/// The command stood silent for as long as it tried.
#[test]
fn a_store_that_does_not_answer_is_said_before_the_command_gives_up() {
    let endpoint = format!("http://{}", nobody());
    let settings = [("AWS_ENDPOINT_URL", endpoint.as_str()), (SOON.0, "2")];
    let (code, text) = list(&settings);
    let (first, last) = text.split_once('\n').unwrap();
    assert!(first.contains(&endpoint) && first.ends_with("trying again for up to 2 s"), "{text}");
    assert!(code == 1 && last.contains("nothing answers at bucket"), "{code}: {text}");
}
