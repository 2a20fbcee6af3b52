//! `cargo xtask setup`: everything a build, a test run and the quickstart need on this machine.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;
use crate::{console, emoji, libtorch, tools};

/// What is there of what set-up downloads and makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ready {
    libtorch: bool,
    data: bool,
}

impl Ready {
    /// Looks, which takes milliseconds.
    pub(crate) fn find(workspace: &Workspace) -> Self {
        Self {
            libtorch: libtorch::is_ready(&workspace.libtorch()),
            data: emoji::is_ready(&workspace.cache().join(emoji::FOLDER)),
        }
    }

    /// Whether something is to be downloaded.
    pub(crate) fn lacks_something(self) -> bool {
        !(self.libtorch && self.data)
    }

    /// The packages to build before [`finish`].
    pub(crate) fn packages(self) -> &'static [&'static str] {
        if self.data { &[] } else { &[emoji::PROGRAM] }
    }
}

/// Sets up what is missing; with `verify`, also reads everything that is there again.
///
/// Where nothing is missing this takes milliseconds, so that every command can start with it.
pub(crate) fn run(workspace: &Workspace, verify: bool) -> Result<()> {
    let before = download(workspace)?;
    if !before.packages().is_empty() {
        console::step("building the program that draws the emoji");
        if !workspace.build(before.packages(), &[])? {
            bail!("{} cannot be built; cargo says why above", emoji::PROGRAM);
        }
    }
    finish(workspace, before)?;
    if verify {
        console::step("verifying checksums");
        let remedy = |folder: &Path| format!("remove {} and run setup again", folder.display());
        let data = workspace.cache().join(emoji::FOLDER);
        libtorch::verify(&workspace.libtorch()).with_context(|| remedy(&workspace.libtorch()))?;
        emoji::verify(&data).with_context(|| remedy(&data))?;
    }
    Ok(())
}

/// The first half of set-up, which building needs: looks for the compilers and downloads libtorch
/// and the packages of the data set, side by side. Returns what was there before.
pub(crate) fn download(workspace: &Workspace) -> Result<Ready> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!(
            "set-up supports x86-64 Linux, this is {} {}: unpack a libtorch 2.11 for it, set LIBTORCH, \
             and use plain cargo",
            std::env::consts::ARCH,
            std::env::consts::OS
        );
    }
    let ready = Ready::find(workspace);
    // The compilers are looked for each time: without them the build's own message is obscure.
    let tools = tools::find(tools::Needs { pip: !ready.libtorch, npm: !ready.data })?;
    let _lock = lock(workspace)?;
    if !ready.libtorch {
        console::step("libtorch 2.11.0 for CPU (545 MB to download, 500 MB on disk)");
    }
    if !ready.data {
        console::step("the emoji image–text set (170 MB to download, 60 MB on disk)");
    }
    thread::scope(|scope| {
        let packages =
            scope.spawn(|| if ready.data { Ok(()) } else { emoji::download(workspace, &tools) });
        let libtorch = if ready.libtorch { Ok(()) } else { libtorch::ensure(workspace, &tools) };
        libtorch.and(packages.join().expect("a download does not panic"))
    })?;
    Ok(ready)
}

/// The second half: draws the data set with the program that was built meanwhile.
pub(crate) fn finish(workspace: &Workspace, before: Ready) -> Result<()> {
    let data = workspace.cache().join(emoji::FOLDER);
    let _lock = lock(workspace)?;
    // Another set-up may have drawn it while this one waited.
    if !before.data && !emoji::is_ready(&data) {
        console::step("drawing the emoji image–text set");
        emoji::draw(workspace)?;
    }
    link_data(workspace.root(), &data)?;
    console::note(&format!("set up: libtorch and data are in {}", workspace.cache().display()));
    Ok(())
}

/// Two set-ups at once would unpack into the same folders: the second waits and finds it all done.
pub(crate) fn lock(workspace: &Workspace) -> Result<File> {
    let path = workspace.cache().join("setup.lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            console::note("waiting for another set-up to finish");
        }
        Err(fs::TryLockError::Error(_)) => {}
    }
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Lets manifests name the data by a path inside the repository: `data/emoji`.
fn link_data(root: &Path, data: &Path) -> Result<()> {
    let folder = root.join("data");
    let link = folder.join("emoji");
    match fs::read_link(&link) {
        Ok(target) if target == data => return Ok(()),
        Ok(_) => fs::remove_file(&link)
            .with_context(|| format!("cannot replace the link {}", link.display()))?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(_) => bail!(
            "{} is in the way: set-up wants a link to {} there; move it elsewhere",
            link.display(),
            data.display()
        ),
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    symlink(data, &link).with_context(|| format!("cannot create the link {}", link.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_link_to_the_data_follows_the_cache_folder() {
        let root = tempfile::tempdir().unwrap();
        for data in [Path::new("/one"), Path::new("/two"), Path::new("/two")] {
            link_data(root.path(), data).unwrap();
            assert_eq!(fs::read_link(root.path().join("data/emoji")).unwrap(), data);
        }
    }

    #[test]
    fn a_folder_of_the_user_in_the_links_place_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("data/emoji")).unwrap();
        let error = link_data(root.path(), Path::new("/one")).unwrap_err();
        assert!(error.to_string().contains("is in the way"), "{error}");
    }
}
