//! Embeds the build id, and says whether workers that fail on demand are taken.

#[path = "../proto/build_id.rs"]
mod build_id;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    build_id::embed(build_id::RINGMASTER)
}
