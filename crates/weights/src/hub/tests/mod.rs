//! The hub's client against a hub on the loopback interface, and names without one.

mod server;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::time::Duration;

use super::*;
use server::{COMMIT, Server, sha256};

const WEIGHTS_FILE: &str = "open_clip_model.safetensors";

/// A hub with one repository, `org/model`, and an empty cache.
struct World {
    server: Server,
    cache: tempfile::TempDir,
    content: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let content: Vec<u8> = (0..300_000_u32).map(|index| (index / 7) as u8).collect();
        let server = Server::start(&[
            ("org/model/open_clip_model.safetensors", &content),
            ("org/model/open_clip_config.json", b"{\"model_cfg\": {}}"),
            ("org/model/tokenizer.json", b"{}"),
            ("org/model/sub/deep.json", b"[]"),
            ("org/old/open_clip_pytorch_model.bin", b"old"),
            ("org/empty/README.json", b"nothing"),
            ("roberta-base/model.safetensors", b"a tower of transformers'"),
        ]);
        Self { server, cache: tempfile::tempdir().unwrap(), content }
    }

    fn settings(&self) -> Settings {
        Settings {
            endpoint: self.server.url.clone(),
            cache: self.cache.path().to_owned(),
            offline: false,
            token: None,
            timeout: Duration::from_secs(60),
            pause: Duration::ZERO,
        }
    }

    fn hub(&self) -> Hub {
        Hub::new(self.settings())
    }

    fn offline(&self) -> Hub {
        Hub::new(Settings { offline: true, ..self.settings() })
    }

    fn fetch(&self, hub: &Hub, file: &str) -> Result<PathBuf, Error> {
        hub.fetch(&Repository::parse("org/model").unwrap(), file, &mut |_| {})
    }

    fn repository(&self) -> PathBuf {
        self.cache.path().join("models--org--model")
    }

    /// Everything below the repository's `blobs`.
    fn blobs(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.repository().join("blobs")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// timm's and transformers' repositories hold towers under other names, some without an organisation.
#[test]
fn weights_of_a_tower_are_found_under_the_names_of_other_libraries() {
    let world = World::new();
    let located = resolve("hf-hub:roberta-base", &world.hub(), &mut |_| {}).unwrap();
    assert_eq!(located.weights.file_name().unwrap(), "model.safetensors");
    assert_eq!(fs::read(&located.weights).unwrap(), b"a tower of transformers'");
    assert_eq!(located.config, None);
}

#[test]
fn a_repository_is_fetched_once_into_the_layout_that_python_reads() {
    let world = World::new();
    let located = resolve("hf-hub:org/model", &world.hub(), &mut |_| {}).unwrap();
    let snapshot = world.repository().join("snapshots").join(COMMIT);
    assert_eq!(located.weights, snapshot.join(WEIGHTS_FILE));
    assert_eq!(located.config, Some(snapshot.join(CONFIG)));
    assert_eq!(located.tokenizer, [snapshot.join("tokenizer.json")]);
    assert_eq!(fs::read(&located.weights).unwrap(), world.content);
    let link = fs::read_link(&located.weights).unwrap();
    assert_eq!(link, PathBuf::from(format!("../../blobs/{}", sha256(&world.content))));
    assert_eq!(fs::read_to_string(world.repository().join("refs/main")).unwrap(), COMMIT);
    let deep = world.fetch(&world.hub(), "sub/deep.json").unwrap();
    assert!(fs::read_link(&deep).unwrap().starts_with("../../../blobs"));
    assert_eq!(fs::read(deep).unwrap(), b"[]");

    world.server.log();
    resolve("hf-hub:org/model", &world.hub(), &mut |_| {}).unwrap();
    let log = world.server.log();
    assert!(log.iter().all(|request| request.starts_with("HEAD ")), "{log:?}");
}

#[test]
fn what_python_has_cached_is_used_without_the_hub() {
    let world = World::new();
    let snapshot = world.repository().join("snapshots").join(COMMIT);
    fs::create_dir_all(world.repository().join("refs")).unwrap();
    fs::create_dir_all(world.repository().join("blobs")).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(world.repository().join("refs/main"), COMMIT).unwrap();
    fs::write(world.repository().join("blobs/abc"), "weights").unwrap();
    std::os::unix::fs::symlink("../../blobs/abc", snapshot.join(WEIGHTS_FILE)).unwrap();

    let located = resolve("hf-hub:org/model", &world.offline(), &mut |_| {}).unwrap();
    assert_eq!(fs::read(located.weights).unwrap(), b"weights");
    assert_eq!(located.config, None);
    let pinned = Repository::parse(&format!("org/model@{COMMIT}")).unwrap();
    world.hub().fetch(&pinned, WEIGHTS_FILE, &mut |_| {}).unwrap();
    assert!(world.server.log().is_empty(), "a commit never changes");

    world.server.set(|state| state.status = Some(503));
    assert!(world.fetch(&world.hub(), WEIGHTS_FILE).is_ok(), "the hub is down, the file is here");
    let error = world.fetch(&world.hub(), CONFIG).unwrap_err();
    assert!(
        ringmaster_words::chain(&error).contains("answers with status 503"),
        "{}",
        ringmaster_words::chain(&error)
    );
}

#[test]
fn offline_says_which_file_is_missing_and_where_it_was_looked_for() {
    let world = World::new();
    let error = resolve("hf-hub:org/model", &world.offline(), &mut |_| {}).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("open_clip_model.safetensors or open_clip_pytorch_model.bin"), "{text}");
    assert!(text.contains("HF_HUB_OFFLINE forbids"), "{text}");
    assert!(world.server.log().is_empty());
}

#[test]
fn a_connection_that_is_cut_is_taken_up_where_it_broke_off() {
    let world = World::new();
    world.server.set(|state| state.cuts = vec![100_000, 0, 50_000]);
    let mut seen = Vec::new();
    let repository = Repository::parse("org/model").unwrap();
    let path = world.hub().fetch(&repository, WEIGHTS_FILE, &mut |progress| {
        assert_eq!((progress.file, progress.total), (WEIGHTS_FILE, Some(300_000)));
        seen.push(progress.done);
    });
    assert_eq!(fs::read(path.unwrap()).unwrap(), world.content);
    assert!(seen.is_sorted() && seen.last() == Some(&300_000), "{seen:?}");
    let log = world.server.log();
    let parts: Vec<_> = log.iter().filter_map(|request| request.split_once(" from ")).collect();
    let starts: Vec<usize> = parts.iter().map(|(_, start)| start.parse().unwrap()).collect();
    assert_eq!(starts, [100_000, 100_000, 150_000], "{log:?}");
}

#[test]
fn a_download_that_keeps_breaking_off_fails_and_the_next_one_goes_on() {
    let world = World::new();
    world.server.set(|state| state.cuts = vec![1000, 0, 0, 0, 0, 0]);
    let error = world.fetch(&world.hub(), WEIGHTS_FILE).unwrap_err();
    let text = ringmaster_words::chain(&error);
    assert!(text.contains("broke off after 1000 of 300000 bytes, 5 times in a row"), "{text}");
    let etag = sha256(&world.content);
    assert_eq!(world.blobs(), [format!("{etag}.incomplete")].into());
    world.server.set(|state| state.cuts.clear());
    world.server.log();
    let path = world.fetch(&world.hub(), WEIGHTS_FILE).unwrap();
    assert_eq!(fs::read(path).unwrap(), world.content);
    assert!(world.server.log()[1].ends_with(" from 1000"));
    assert_eq!(world.blobs(), [etag].into());
}

#[test]
fn a_server_that_ignores_ranges_sends_all_and_nothing_is_doubled() {
    let world = World::new();
    world.server.set(|state| (state.cuts, state.ignores_ranges) = (vec![1000], true));
    let path = world.fetch(&world.hub(), WEIGHTS_FILE).unwrap();
    assert_eq!(fs::read(path).unwrap(), world.content);
}

#[test]
fn other_content_than_announced_is_thrown_away() {
    let world = World::new();
    world.server.set(|state| state.lies = true);
    let error = world.fetch(&world.hub(), WEIGHTS_FILE).unwrap_err();
    assert!(error.to_string().contains("sha256 is "), "{error}");
    assert!(world.blobs().is_empty(), "{:?}", world.blobs());
    // A part of something else, left by an earlier attempt, does not survive either.
    world.server.set(|state| state.lies = false);
    let incomplete = format!("{}.incomplete", sha256(&world.content));
    fs::write(world.repository().join("blobs").join(incomplete), vec![9; 1000]).unwrap();
    world.fetch(&world.hub(), WEIGHTS_FILE).unwrap_err();
    assert!(world.fetch(&world.hub(), WEIGHTS_FILE).is_ok());
}

#[test]
fn redirections_are_followed_inside_the_hub_and_not_to_storage() {
    let world = World::new();
    world.server.set(|state| state.redirects = true);
    let path = world.fetch(&world.hub(), WEIGHTS_FILE).unwrap();
    assert_eq!(fs::read(path).unwrap(), world.content);
    assert_eq!(fs::read(world.fetch(&world.hub(), CONFIG).unwrap()).unwrap().len(), 17);
}

#[test]
fn headers_that_would_leave_the_cache_are_not_believed() {
    for (name, value) in [
        ("X-Linked-Etag", "\"../../../../evil\""),
        ("X-Repo-Commit", "../../../../evil"),
        ("X-Repo-Commit", ""),
    ] {
        let world = World::new();
        world.server.set(|state| drop(state.replaced.insert(name.into(), value.into())));
        let error = world.fetch(&world.hub(), WEIGHTS_FILE).unwrap_err();
        assert!(matches!(&error, Error::Answer { .. }), "{name}: {error}");
    }
    for name in ["../up", "/root", "a//b", ".git/config", "a\\b", ""] {
        let world = World::new();
        assert!(matches!(world.fetch(&world.hub(), name), Err(Error::Name { .. })), "{name}");
    }
    for name in ["", "a/b/c", "../x", "org/..", "org/na me", "org/model@../x", "org/a--b", "a@"] {
        assert!(Repository::parse(name).is_err(), "{name}");
    }
}

#[test]
fn who_may_not_read_a_repository_is_told_what_to_do() {
    let world = World::new();
    world.server.set(|state| state.token = Some("right".to_owned()));
    let with = |token: &str| Hub::new(Settings { token: Some(token.into()), ..world.settings() });
    let text = world.fetch(&world.hub(), CONFIG).unwrap_err().to_string();
    assert!(text.contains("status 401") && text.contains("set HF_TOKEN"), "{text}");
    let text = world.fetch(&with("wrong"), CONFIG).unwrap_err().to_string();
    assert!(text.contains("ask for access at http://127.0.0.1"), "{text}");
    assert!(!text.contains("wrong"), "{text}");
    assert!(world.fetch(&with("right"), CONFIG).is_ok());
    assert!(!format!("{:?}", with("right")).contains("right"));
}

#[test]
fn what_a_hub_does_not_have_is_named() {
    let world = World::new();
    let fail = |name: &str| resolve(name, &world.hub(), &mut |_| {}).unwrap_err().to_string();
    assert!(fail("hf-hub:org/none").contains("has no repository org/none"));
    assert!(fail("hf-hub:org/model@v9").contains("has no revision org/model@v9"));
    assert!(fail("hf-hub:org/empty").contains("org/empty has no open_clip_model.safetensors or"));
    let old = resolve("hf-hub:org/old", &world.hub(), &mut |_| {}).unwrap();
    assert!(old.weights.ends_with("open_clip_pytorch_model.bin"));
    let branch = resolve("hf-hub:org/model@refs/pr/1", &world.hub(), &mut |_| {}).unwrap();
    assert!(branch.weights.is_file() && world.repository().join("refs/refs/pr/1").is_file());
}

#[test]
fn a_hub_works_inside_a_runtime_and_for_many_threads_at_once() {
    let world = World::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { world.fetch(&world.hub(), CONFIG) }).unwrap();
    world.server.log();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| world.fetch(&world.hub(), WEIGHTS_FILE).unwrap());
        }
    });
    let log = world.server.log();
    let fetched = log.iter().filter(|request| request.starts_with("GET ")).count();
    assert_eq!(fetched, 1, "{log:?}");
}

#[test]
fn folders_prefer_weights_as_open_clip_does() {
    let folder = tempfile::tempdir().unwrap();
    let place = format!("local-dir:{}", folder.path().display());
    let find = || resolve(&place, &Hub::new(settings(&[])), &mut |_| {});
    assert!(
        find()
            .unwrap_err()
            .to_string()
            .contains("holds no weights: there are no files in it; expected open")
    );
    // From the last that is taken to the first.
    for name in [
        "z.pth",
        "epoch_2.bin",
        "b.safetensors",
        "a.safetensors",
        "model.pth",
        "pytorch_model.bin",
        "model.safetensors",
        "open_clip_pytorch_model.pth",
        "open_clip_pytorch_model.bin",
        "open_clip_pytorch_model.safetensors",
        "open_clip_model.safetensors",
    ] {
        fs::write(folder.path().join(name), "").unwrap();
        assert_eq!(find().unwrap().weights, folder.path().join(name));
    }
    fs::write(folder.path().join(CONFIG), "{}").unwrap();
    assert_eq!(find().unwrap().config, Some(folder.path().join(CONFIG)));
    let missing = resolve("/no/such/file.pt", &Hub::new(settings(&[])), &mut |_| {});
    assert!(missing.unwrap_err().to_string().contains("no file or folder /no/such/file.pt"));
}

/// The first part alone was taken, and the model was said to lack what lies in the others.
#[test]
fn folders_with_weights_in_parts_are_named_by_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let place = format!("local-dir:{}", folder.path().display());
    let find = || resolve(&place, &Hub::new(settings(&[])), &mut |_| {});
    let write = |name: &str| fs::write(folder.path().join(name), "").unwrap();
    for name in ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "config.json"] {
        write(name);
    }
    let text = find().unwrap_err().to_string();
    assert!(
        text.contains("holds 2 part(s) of weights, such as m-00001-of-00002.safetensors"),
        "{text}"
    );
    // From the last that is taken to the first.
    for name in [
        "m.bin.index.json",
        "m.safetensors.index.json",
        "m-1-of-1.safetensors",
        "pytorch_model.bin.index.json",
        "model.safetensors.index.json",
        "model.safetensors",
        "open_clip_model.safetensors.index.json",
        "open_clip_model.safetensors",
    ] {
        write(name);
        assert_eq!(find().unwrap().weights, folder.path().join(name));
    }
}

#[test]
fn a_folder_without_weights_says_what_lies_there() {
    let folder = tempfile::tempdir().unwrap();
    for epoch in 1..8 {
        fs::write(folder.path().join(format!("epoch_{epoch}.pt")), "").unwrap();
    }
    let text = weights_in(folder.path()).unwrap_err().to_string();
    assert!(text.contains("there are epoch_1.pt, epoch_2.pt"), "{text}");
    assert!(text.contains("epoch_5.pt and 2 more files; expected open_clip_model"), "{text}");
}

const PARTS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// Gives the world's hub a repository `org/parts` with these parts of those that its index lists.
fn serve_parts(world: &World, there: &[&str]) {
    let map = format!("{{\"weight_map\": {{\"a\": {:?}, \"b\": {:?}}}}}", PARTS[0], PARTS[1]);
    world.server.set(|state| {
        let name = |file: &str| format!("org/parts/{file}");
        state.files.insert(name("model.safetensors.index.json"), map.into_bytes());
        state.files.extend(there.iter().map(|part| (name(part), part.as_bytes().to_vec())));
    });
}

#[test]
fn a_repository_with_weights_in_parts_is_fetched_with_all_of_them() {
    let world = World::new();
    serve_parts(&world, &PARTS);
    let located = resolve("hf-hub:org/parts", &world.hub(), &mut |_| {}).unwrap();
    assert_eq!(located.weights.file_name().unwrap(), "model.safetensors.index.json");
    let folder = located.weights.parent().unwrap();
    for part in PARTS {
        assert_eq!(fs::read(folder.join(part)).unwrap(), part.as_bytes());
    }
    // Of the commit that the index is of, whatever the branch is by then.
    let log = world.server.log();
    let heads = log.iter().filter(|request| request.contains("HEAD") && request.contains("-of-"));
    assert!(heads.clone().all(|request| request.contains(COMMIT)) && heads.count() == 2, "{log:?}");
    let again = resolve("hf-hub:org/parts", &world.offline(), &mut |_| {}).unwrap();
    assert_eq!(again.weights, located.weights);
}

#[test]
fn a_repository_that_lacks_a_part_or_lists_a_strange_one_is_refused() {
    let world = World::new();
    serve_parts(&world, &PARTS[..1]);
    let fail = |hub: &Hub| {
        ringmaster_words::chain(&resolve("hf-hub:org/parts", hub, &mut |_| {}).unwrap_err())
    };
    let text = fail(&world.hub());
    let expected = format!("has no {}, which its model.safetensors.index.json lists", PARTS[1]);
    assert!(text.contains(&expected), "{text}");
    let text = fail(&world.offline());
    assert!(
        text.contains(&format!("{} of org/parts@{COMMIT} is not in the cache", PARTS[1])),
        "{text}"
    );
    for (name, expected) in
        [("../../../evil", "expected a file beside the index"), (".git", "expected a path inside")]
    {
        world.server.set(|state| {
            let index = format!("{{\"weight_map\": {{\"a\": {name:?}}}}}");
            let file = "org/parts/model.safetensors.index.json".to_owned();
            state.files.insert(file, index.into_bytes());
        });
        let fresh = tempfile::tempdir().unwrap();
        let cache = fresh.path().to_owned();
        let text = fail(&Hub::new(Settings { cache, ..world.settings() }));
        assert!(text.contains(expected), "{text}");
    }
}

fn settings(variables: &[(&str, &str)]) -> Settings {
    Settings::from_variables(|name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| OsString::from(value))
    })
}

#[test]
fn the_environment_names_hub_and_cache_as_huggingface_hub_reads_it() {
    let bare = settings(&[("HOME", "/h")]);
    assert_eq!(bare.cache, PathBuf::from("/h/.cache/huggingface/hub"));
    assert_eq!((bare.endpoint.as_str(), bare.offline), ("https://huggingface.co", false));
    let cache = |variables: &[(&str, &str)]| settings(variables).cache;
    assert_eq!(
        cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]),
        PathBuf::from("/x/huggingface/hub")
    );
    assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "/f")]), PathBuf::from("/f/hub"));
    assert_eq!(cache(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), PathBuf::from("/c"));
    let set =
        settings(&[("HF_ENDPOINT", "http://mirror/"), ("HF_HUB_OFFLINE", "yes"), ("HF_TOKEN", "")]);
    assert_eq!((set.endpoint.as_str(), set.offline, set.token), ("http://mirror", true, None));
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("token"), "hf_logged_in\n").unwrap();
    let home = home.path().to_str().unwrap();
    assert_eq!(settings(&[("HF_HOME", home)]).token.as_deref(), Some("hf_logged_in"));
    let both = settings(&[("HF_HOME", home), ("HF_TOKEN", "hf_other")]);
    assert_eq!(both.token.as_deref(), Some("hf_other"));
}

#[test]
fn tags_lead_to_repositories_and_say_how_their_weights_are_used() {
    let known = tag("ViT-B-32", "laion2b_s34b_b79k").unwrap();
    assert_eq!(known.repository, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K");
    assert!(!known.quick_gelu && known.preprocess == tags::CLIP);
    assert_eq!(tag("ViT-B-32", "LAION2B-s34b-b79k"), Some(known), "as OpenCLIP cleans tags");
    assert!(tag("ViT-B-32-quickgelu", "openai").unwrap().quick_gelu);
    assert_eq!(tag("ViT-B-32-quickgelu", "laion2b_s34b_b79k"), None);
    assert_eq!(tag("ViT-B-16-SigLIP2", "webli").unwrap().preprocess.resize_mode, "squash");
    assert_eq!(tag("ViT-L-14-CLIPA", "datacomp1b").unwrap().preprocess.interpolation, "bilinear");
    assert_eq!(tag("ViT-L-14", "laion2b_s32b_b82k").unwrap().preprocess.mean, [0.5; 3]);
    let mut pairs = BTreeSet::new();
    for tag in tag_table::TAGS {
        assert!(pairs.insert((tag.model, tag.name)), "{tag:?} twice");
        Repository::parse(tag.repository).unwrap();
        assert_eq!(tag.name, tag.name.to_ascii_lowercase().replace('-', "_"));
    }
    let world = World::new();
    let fail = |model: &str| {
        resolve_tag(model, "openia", &world.hub(), &mut |_| {}).unwrap_err().to_string()
    };
    assert!(
        fail("RN50").contains("no pretrained weights \"openia\"; it has openai, yfcc15m, cc12m")
    );
    assert!(fail("mine").contains("none are known for it"));
    // The repository is asked for where HF_ENDPOINT says.
    world.server.set(|state| {
        let name = "timm/resnet50_clip.openai/open_clip_model.safetensors".to_owned();
        state.files.insert(name, b"weights".to_vec());
    });
    let (located, tag) = resolve_tag("RN50", "openai", &world.hub(), &mut |_| {}).unwrap();
    assert!(located.weights.is_file() && tag.quick_gelu);
}
