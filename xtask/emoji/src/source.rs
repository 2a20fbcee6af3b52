//! The packages the set is made from, and the files in them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, bail};
use flate2::read::GzDecoder;
use tar::Archive;

/// Each package's name and the verified file it was downloaded to.
pub(super) type Packages = BTreeMap<String, PathBuf>;

const GOOGLE: &str = "emoji-datasource-google";
const TWITTER: &str = "emoji-datasource-twitter";
const OPENMOJI: &str = "openmoji";
const FLUENT_3D: &str = "@lobehub/fluent-emoji-3d";
const FLUENT_FLAT: &str = "@lobehub/fluent-emoji-flat";
const EMOJIBASE: &str = "emojibase-data";

/// How a vendor's drawings are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Svg,
    Webp,
}

impl Format {
    fn extension(self) -> &'static str {
        match self {
            Self::Png => ".png",
            Self::Svg => ".svg",
            Self::Webp => ".webp",
        }
    }
}

/// One drawing style.
#[derive(Debug)]
pub(super) struct Vendor {
    /// First part of its samples' keys.
    pub(super) name: &'static str,
    /// Whether its drawings are kept for evaluation.
    pub(super) held_out: bool,
    pub(super) format: Format,
    package: &'static str,
    /// Folder of the drawings in the package, named by code points.
    folder: &'static str,
}

/// All drawing styles; Apple's and Facebook's are left out because they are not openly licensed.
pub(super) const VENDORS: [Vendor; 5] = [
    Vendor {
        name: "google",
        held_out: false,
        format: Format::Png,
        package: GOOGLE,
        folder: "package/img/google/64/",
    },
    Vendor {
        name: "openmoji",
        held_out: false,
        format: Format::Svg,
        package: OPENMOJI,
        folder: "package/color/svg/",
    },
    Vendor {
        name: "fluent-3d",
        held_out: false,
        format: Format::Webp,
        package: FLUENT_3D,
        folder: "package/assets/",
    },
    Vendor {
        name: "fluent-flat",
        held_out: false,
        format: Format::Svg,
        package: FLUENT_FLAT,
        folder: "package/assets/",
    },
    Vendor {
        name: "twitter",
        held_out: true,
        format: Format::Png,
        package: TWITTER,
        folder: "package/img/twitter/64/",
    },
];

const EMOJI_LIST: &str = "package/emoji.json";
const NAMES: &str = "package/en/data.json";

/// What is used of the packages, in memory.
pub(super) struct Sources {
    /// `emoji.json` of the held-out vendor's package: all emoji with their code points.
    pub(super) emoji_list: Vec<u8>,
    /// `en/data.json` of emojibase: names and keywords.
    pub(super) names: Vec<u8>,
    /// For each of [`VENDORS`]: [`code_points`] to file.
    drawings: Vec<BTreeMap<String, Vec<u8>>>,
}

impl Sources {
    /// Unpacks what is used of the downloaded packages, in parallel.
    pub(super) fn read(packages: &Packages) -> Result<Self> {
        let file = |name: &str| {
            packages
                .get(name)
                .with_context(|| format!("the package {name} is not among those given"))
        };
        thread::scope(|scope| {
            let vendors = VENDORS
                .each_ref()
                .map(|vendor| scope.spawn(move || read_drawings(file(vendor.package)?, vendor)));
            let emoji_list = read_member(file(TWITTER)?, EMOJI_LIST)?;
            let names = read_member(file(EMOJIBASE)?, NAMES)?;
            let mut drawings = Vec::new();
            for vendor in vendors {
                drawings.push(vendor.join().expect("unpacking does not panic")?);
            }
            Ok(Self { emoji_list, names, drawings })
        })
    }

    /// A vendor's file for an emoji, given by its hyphenated code points, if the vendor has one.
    pub(super) fn drawing(&self, vendor: &Vendor, unified: &str) -> Option<&[u8]> {
        let index = VENDORS.iter().position(|other| other.name == vendor.name)?;
        self.drawings[index].get(&code_points(unified)).map(Vec::as_slice)
    }

    /// How many files a vendor's package has.
    pub(super) fn files_of(&self, vendor: &Vendor) -> usize {
        let index = VENDORS.iter().position(|other| other.name == vendor.name);
        index.map_or(0, |index| self.drawings[index].len())
    }
}

/// The code points of a hyphenated hexadecimal sequence without the variation selector FE0F, in
/// upper case: vendors disagree about where the selector belongs, and no two emoji differ by it.
pub(super) fn code_points(sequence: &str) -> String {
    let upper = sequence.to_uppercase();
    upper.split('-').filter(|point| *point != "FE0F").collect::<Vec<_>>().join("-")
}

fn read_drawings(path: &Path, vendor: &Vendor) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut drawings = BTreeMap::new();
    for_each_member(path, |name, content| {
        let file = name.strip_prefix(vendor.folder);
        let stem = file.and_then(|file| file.strip_suffix(vendor.format.extension()));
        if let Some(stem) = stem.filter(|stem| !stem.contains('/')) {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes)?;
            drawings.insert(code_points(stem), bytes);
        }
        Ok(true)
    })?;
    if drawings.is_empty() {
        bail!("{} has no {} files in {}", path.display(), vendor.format.extension(), vendor.folder);
    }
    Ok(drawings)
}

fn read_member(path: &Path, wanted: &str) -> Result<Vec<u8>> {
    let mut found = None;
    for_each_member(path, |name, content| {
        if name == wanted {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes)?;
            found = Some(bytes);
        }
        Ok(found.is_none())
    })?;
    found.with_context(|| format!("{} has no member {wanted}", path.display()))
}

/// Calls `visit` for each member of a package until it answers false.
fn for_each_member(
    path: &Path,
    mut visit: impl FnMut(&str, &mut dyn Read) -> Result<bool>,
) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut archive = Archive::new(GzDecoder::new(BufReader::new(file)));
    let damaged = || format!("cannot read {}", path.display());
    for entry in archive.entries().with_context(damaged)? {
        let mut entry = entry.with_context(damaged)?;
        let name = entry.path().with_context(damaged)?.to_string_lossy().into_owned();
        if !visit(&name, &mut entry).with_context(damaged)? {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vendors_agree_on_code_points_once_the_variation_selector_is_gone() {
        assert_eq!(code_points("0023-fe0f-20e3"), "0023-20E3");
        assert_eq!(code_points("1F441-FE0F-200D-1F5E8-FE0F"), "1F441-200D-1F5E8");
        assert_eq!(code_points("1f600"), "1F600");
    }

    #[test]
    fn exactly_twitter_is_held_out() {
        let held_out: Vec<_> = VENDORS.iter().filter(|v| v.held_out).map(|v| v.name).collect();
        assert_eq!(held_out, ["twitter"]);
    }
}
