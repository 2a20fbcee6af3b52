//! Whatever a manifest holds, reading it takes bounded memory.
#![allow(
    clippy::print_stdout,
    reason = "seen only where a test fails, or by whoever runs it alone"
)]
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use ringmaster_manifest::{MAX_TEXT, ModelCatalogue, parse};

/// What reading any manifest may take, this process itself included.
const LIMIT: u64 = 512 << 20;

const GOOD: &str = "apiVersion: ringmaster/v1\nkind: TrainJob\nmetadata: {name: tiny}\nspec:\n  \
    model: {name: ViT-B-32}\n  data: {train: DATA}\n  loss: {kind: siglip}\n  \
    optimizer: {lr: 1.0e-3}\n  schedule: {steps: 40}\n  batch: {global: 64}\n  \
    checkpoint: {uri: /runs}\n";

/// Returns the most memory that this process has had since [`forget_peak`].
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() << 10
}

fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// As long as a manifest may be, less a little for what stands around it.
fn filled(with: &str) -> String {
    with.repeat((MAX_TEXT - 1024) / with.len())
}

fn hostile() -> Vec<(&'static str, String)> {
    let data = |text: &str| GOOD.replace("DATA", text);
    let quoted = |text: &str| data(&format!("\"{text}\""));
    let spec =
        |text: &str| GOOD.replace("spec:\n", &format!("spec:\n{text}")).replace("DATA", "/a.tar");
    let bomb = (1..9).fold("a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n".to_owned(), |text, level| {
        let items = vec![format!("*a{}", level - 1); 10].join(",");
        format!("{text}a{level}: &a{level} [{items}]\n")
    });
    let anchored = |inside: &str| {
        (0..60).fold(inside.to_owned(), |inside, level| format!("&n{level} [{inside}]"))
    };
    vec![
        ("as many shards as are allowed", quoted("/{0..899999}")),
        ("braces that stand for 2^1500 shards", quoted(&"{a,b}".repeat(1500))),
        ("braces without end", quoted(&filled("{a,b}"))),
        ("braces in braces", quoted(&filled("{a,"))),
        ("braces for one shard", quoted(&filled("{7..7}"))),
        ("a wide range", quoted("{0..999999999999999999}")),
        ("long names", quoted(&format!("{}{{0..99999}}", "x".repeat(1 << 20)))),
        ("joins", quoted(&format!("a{}", filled("::a")))),
        ("lists that share a bound", data(&format!("[{}]", "'/{0..99999}',".repeat(1000)))),
        ("aliases of aliases", bomb),
        (
            "aliases of a long text",
            format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), "*a,".repeat(90_000)),
        ),
        ("anchors in anchors", spec(&format!("  a: {}\n", anchored(&"1,".repeat(90_000))))),
        (
            "merges of merges",
            format!("a: &a {{{}}}\nb: [{}]\n", "k: 1,", "{<<: [*a, *a, *a]},".repeat(9_000)),
        ),
        ("open brackets", filled("[")),
        ("open mappings", filled("{a: ")),
        ("list signs", filled("- ")),
        ("key signs", filled("? ")),
        ("unknown keys", spec(&(0..45_000).map(|n| format!("  k{n}: 1\n")).collect::<String>())),
        ("one key, again and again", spec(&filled("  k: 1\n"))),
        ("a long key", spec(&format!("  {}: 1\n", "k".repeat(MAX_TEXT - 2048)))),
        (
            "a long path to mistakes",
            format!("{}: [{}]\n", "k".repeat(1 << 20), "1,".repeat(90_000)),
        ),
        ("a long number", spec(&format!("  a: {}\n", "9".repeat(MAX_TEXT - 2048)))),
        ("a long padded range", quoted(&format!("{{{}..1}}", "0".repeat(MAX_TEXT - 2048)))),
        ("a long text", quoted(&filled("/a"))),
        ("many bad items", spec(&format!("  report_to: [{}]\n", "x,".repeat(90_000)))),
        ("line breaks", filled("\n")),
        ("a comment", format!("#{}", filled("c"))),
        ("marks", filled("\u{feff}")),
        ("documents", filled("---\n")),
        ("too much text", "a".repeat(64 << 20)),
    ]
}

/// One test, alone in its process: what others take would count.
#[test]
fn no_text_takes_more_than_half_a_gigabyte() {
    let models = ModelCatalogue::builtin();
    for (what, text) in hostile() {
        forget_peak();
        let before = peak();
        let taken = parse(&text, "job.yaml", Path::new("/jobs"), &models);
        let told = taken.as_ref().map_or_else(|errors| errors.to_string().len(), |_| 0);
        let peak = peak();
        println!(
            "{what}: {} MiB, of these {} MiB before; {told} bytes of mistakes",
            peak >> 20,
            before >> 20
        );
        assert!(peak < LIMIT, "{what} takes {} MiB", peak >> 20);
        assert!(told < 100_000, "{what} is told in {told} bytes");
    }
}
