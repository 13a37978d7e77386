//! Making a layer of parts.
//!
//! By the archive, where there is a tar-split stream: its headers say what to make, as they would if it came whole, and
//! the table only where bytes are. By the table alone else. Members are made by the same code as any layer's.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::channel;

use domain::digest::Digest;
use domain::id::LayerId;
use durable::beneath::Root;
use flate2::read::MultiGzDecoder;
use rustix::fs::{CWD, Mode, OFlags};

use super::content::{Content, Links, Parts};
use super::doors::{self, Doors};
use super::ranges::Fetched;
use super::split::SplitTar;
use super::toc::ByteRange;
use super::toc::{TOC_MAX_BYTES, TocError};
use super::{
    ChunkedContents, ChunkedPlan, LAYER_FORMAT, LAYER_FORMAT_DIRECTORY, StageChunkedError, StagedChunked, TABLE,
    decoder,
};
use crate::crc64::Crc64;
use crate::error::PathError;
use crate::fault;
use crate::images::{big_data_file, read_regular};
use crate::stage::{DIFF, ENTRIES_MAX, Outlet, Seen, SplitWriter, Tree, clean, is_whiteout, pipe, unpack_error};
use crate::staging::{StagingDir, StagingFile};
use crate::store::Store;
use crate::tar::{Kind, Member, Reader, TarError, shown};
use crate::types::StageOptions;

pub(super) type Result<T, E = StageChunkedError> = std::result::Result<T, E>;

fn path_error<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> StageChunkedError {
    let path = path.to_owned();
    move |error| StageChunkedError::Path(PathError::new(action, path)(error))
}

impl Store {
    /// Makes a layer of what the plan found and of `missing`, which yields the bytes of [`ChunkedPlan::ranges`].
    ///
    /// Every file has the digest the table says, and so has every chunk. Returns when everything is on the disk; on
    /// error nothing is left.
    pub fn stage_chunked(&self, plan: ChunkedPlan, missing: impl Read, options: StageOptions) -> Result<StagedChunked> {
        let limit = options.diff_size_max.unwrap_or(u64::MAX);
        let source = Source {
            missing,
            ranges: plan.ranges.clone(),
            locals: plan.locals.iter().map(|local| &local.root).collect(),
            links: if plan.use_hard_links { Links::Allowed } else { Links::Never },
        };
        let (directory, split, mut contents) = match &plan.layer.split {
            Some(split) => {
                let open = || Ok(SplitTar::new(decoder(split)?, limit));
                self.compose_archive(open, Guide::Table(TableGuide::new(&plan)), source)?
            }
            None => self.compose_table(&plan, source, limit)?,
        };
        contents.toc_digest = Some(plan.layer.toc_digest.clone());
        let data = vec![
            (TABLE, self.stage_data(&plan.layer.table)?),
            (LAYER_FORMAT, self.stage_data(LAYER_FORMAT_DIRECTORY)?),
        ];
        Ok(StagedChunked { directory, split, contents, data })
    }

    /// Makes the layer with this archive of another layer that has it, if there is one: the same files on another parent.
    ///
    /// Nothing is believed: the archive is put together and digested again.
    pub fn stage_twin(&self, diff_id: &Digest) -> Result<Option<StagedChunked>> {
        let (row, pin) = {
            let layers = self.layers.read().map_err(StageChunkedError::Records)?;
            let has_it = |id: &str| self.driver.diff(id).is_dir() && self.tar_split(id).is_file();
            let found = layers
                .iter()
                .find(|row| row.diff_digest == diff_id.as_str() && !row.is_incomplete() && has_it(&row.id))
                .and_then(|row| Some((row.clone(), self.pin(LayerId::parse(&row.id).ok()?))));
            match found {
                Some(found) => found,
                None => return Ok(None),
            }
        };
        let split_path = self.tar_split(&row.id);
        let split = File::open(&split_path).map_err(path_error("open", &split_path))?;
        let diff = self.driver.diff(&row.id);
        let root = Root::open(&diff).map_err(path_error("open", &diff))?;
        let source = Source { missing: io::empty(), ranges: Vec::new(), locals: vec![&root], links: Links::Never };
        let open = || Ok(SplitTar::new(MultiGzDecoder::new(io::BufReader::new(split)), u64::MAX));
        let (directory, split, mut contents) = self.compose_archive(open, Guide::Twin, source)?;
        drop(pin);
        let mut data = Vec::new();
        for key in [TABLE, LAYER_FORMAT].into_iter().filter(|key| row.big_data_names.iter().any(|name| name == key)) {
            let path = self.layers_dir().join(&row.id).join(big_data_file(key));
            if let Ok(Some(bytes)) = read_regular(&path, TOC_MAX_BYTES) {
                data.push((key, self.stage_data(&bytes)?));
            }
        }
        contents.toc_digest = Digest::parse(&row.toc_digest).ok().filter(|_| data.len() == 2);
        contents.compressed = (!row.compressed_diff_digest.is_empty())
            .then(|| (row.compressed_diff_digest.clone(), row.compressed_size, row.compression));
        Ok(Some(StagedChunked { directory, split, contents, data }))
    }

    fn stage_data(&self, bytes: &[u8]) -> Result<StagingFile> {
        let file = self.staging().new_file(&self.layers_dir());
        let mut options = File::options();
        let written = options.write(true).create_new(true).mode(0o600).open(file.path()).and_then(|mut open| {
            open.write_all(bytes)?;
            open.sync_all()
        });
        written.map_err(path_error("write", file.path()))?;
        Ok(file)
    }

    fn compose_archive<S: Read>(
        &self,
        open: impl FnOnce() -> io::Result<SplitTar<S>> + Send,
        guide: Guide<'_>,
        source: Source<'_, impl Read>,
    ) -> Result<Made> {
        let split = self.staging().new_file(&self.layers_dir());
        let file = File::options().write(true).create_new(true).mode(0o600).open(split.path());
        let file = file.map_err(path_error("create", split.path()))?;
        let split_path = split.path();
        let (directory, contents) = self.compose(source, |tree, parts| {
            let split = SplitWriter::new(BufWriter::new(file));
            let mut reader = Reader::new(open().map_err(StageChunkedError::Fetch)?);
            let (entries, uids, gids) =
                Composing { tree, parts, guide, split, split_path, entries: 0 }.run(&mut reader)?;
            let (digest, size) = reader.into_inner().finish();
            let diff = Some((Digest::from_sha256(&digest), size));
            Ok(ChunkedContents { toc_digest: None, diff, compressed: None, entries, uids, gids })
        })?;
        Ok((directory, Some(split), contents))
    }

    fn compose_table(&self, plan: &ChunkedPlan, source: Source<'_, impl Read>, limit: u64) -> Result<Made> {
        if plan.size > limit {
            return Err(TocError::Unsuitable("its files are too large").into());
        }
        let (directory, contents) = self.compose(source, |mut tree, mut parts| {
            let mut entries = 0;
            let mut links = Vec::new();
            for (entry, origin) in plan.layer.toc.entries.iter().zip(&plan.origins) {
                let member = &entry.member;
                entries = count(entries, member)?;
                let path = clean(&member.name).map_err(StageChunkedError::Tar)?;
                if entry.chunks.is_empty() {
                    match member.kind {
                        // Their files may come later.
                        Kind::HardLink => links.push((path, member)),
                        _ => tree.make(&path, member).map_err(StageChunkedError::Tar)?,
                    }
                    continue;
                }
                if path.is_empty() || is_whiteout(&path) {
                    return Err(TocError::Unsuitable("a whiteout in it has content").into());
                }
                parts.write(&mut tree, &path, member, &Content::Table(entry, origin), &mut |_| Ok(()))?;
            }
            for (path, member) in links {
                tree.make(&path, member).map_err(StageChunkedError::Tar)?;
            }
            let (uids, gids) = tree.finish().map_err(StageChunkedError::Tar)?;
            Ok(ChunkedContents { toc_digest: None, diff: None, compressed: None, entries, uids, gids })
        })?;
        Ok((directory, None, contents))
    }

    /// Does `work`, which handles bytes nobody has verified, in a thread that reaches nothing but a new directory. What
    /// it needs of elsewhere is brought to it: missing bytes by this thread, files of other layers by one more.
    fn compose<T: Send>(
        &self,
        source: Source<'_, impl Read>,
        work: impl FnOnce(Tree<'_>, Parts<'_, Outlet>) -> Result<T> + Send,
    ) -> Result<(StagingDir, T)> {
        let directory = self.staging().new_dir().map_err(StageChunkedError::Path)?;
        let path = directory.path();
        let root = open_root(path)?;
        let Source { mut missing, ranges, locals, links } = source;
        let (inlet, outlet) = pipe();
        let (ask, asked) = channel();
        let (pumped, made) = std::thread::scope(|scope| {
            let root = root.as_fd();
            let composing = std::thread::Builder::new().name("compose".to_owned()).spawn_scoped(scope, move || {
                sys::confine::enter(root).map_err(StageChunkedError::Confine)?;
                let tree = Tree::confined(root, self.devices()).map_err(path_error("look at", path))?;
                let fetched = Fetched::new(outlet, ranges);
                let parts = Parts::new((self.write_back(), root), Doors(ask), fetched, links);
                work(tree, parts.map_err(StageChunkedError::Fetch)?)
            });
            let serving = std::thread::Builder::new()
                .name("doors".to_owned())
                .spawn_scoped(scope, move || doors::serve(&asked, &locals));
            let pumped = inlet.pump(&mut missing, |_| {});
            let made = match composing {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(source) => Err(StageChunkedError::Confine(source)),
            };
            (pumped, serving.map_err(StageChunkedError::Confine).and(made))
        });
        // The first cause: bytes that do not come starve whoever waits for them.
        pumped.map_err(StageChunkedError::Fetch)?.ok();
        let made = made?;
        // One call for all files of the layer.
        fault::step("sync staged layer").map_err(path_error("sync", path))?;
        rustix::fs::syncfs(&root).map_err(path_error("sync", path))?;
        Ok((directory, made))
    }
}

/// What a layer is made of.
struct Source<'p, R> {
    missing: R,
    ranges: Vec<ByteRange>,
    locals: Vec<&'p Root>,
    links: Links,
}

/// Files, tar-split stream, and what they turned out to be.
type Made = (StagingDir, Option<StagingFile>, ChunkedContents);

fn open_root(directory: &Path) -> Result<OwnedFd> {
    let diff = directory.join(DIFF);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, &diff, flags, Mode::empty()).map_err(path_error("open", &diff))
}

fn count(entries: u64, member: &Member) -> Result<u64> {
    if entries == ENTRIES_MAX {
        return Err(StageChunkedError::Tar(TarError::TooManyEntries { limit: ENTRIES_MAX }));
    }
    fault::step("unpack a member").map_err(unpack_error(member, "make")).map_err(StageChunkedError::Tar)?;
    Ok(entries + 1)
}

/// What says where the bytes of the archive's files are.
enum Guide<'p> {
    Table(TableGuide<'p>),
    /// A layer with the same archive has every file under its name.
    Twin,
}

/// A table that must say what the archive says.
struct TableGuide<'p> {
    plan: &'p ChunkedPlan,
    /// Entries that the archive has not had yet.
    left: HashMap<&'p [u8], usize>,
}

impl<'p> TableGuide<'p> {
    fn new(plan: &'p ChunkedPlan) -> Self {
        let entries = &plan.layer.toc.entries;
        Self { plan, left: entries.iter().enumerate().map(|(at, entry)| (&entry.member.name[..], at)).collect() }
    }

    fn take(&mut self, member: &Member) -> Result<Content<'p>> {
        let name = shown(&member.name);
        if std::str::from_utf8(&member.name).is_err() || std::str::from_utf8(&member.link).is_err() {
            return Err(TocError::Unsuitable("it has names that are not UTF-8").into());
        }
        let Some(at) = self.left.remove(&member.name[..]) else {
            let what = format!("archive has {name:?}, the table has not, or not twice");
            return Err(TocError::Refused(what).into());
        };
        let entry = &self.plan.layer.toc.entries[at];
        if let Some(what) = difference(member, &entry.member) {
            return Err(TocError::Refused(format!("archive and table have {what} of {name:?} differently")).into());
        }
        Ok(Content::Table(entry, &self.plan.origins[at]))
    }

    fn finish(&self) -> Result<()> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(name) => Err(TocError::Refused(format!("table has {:?}, the archive has not", shown(name))).into()),
        }
    }
}

/// What of two members is not the same.
fn difference(archive: &Member, table: &Member) -> Option<&'static str> {
    let sorted = |member: &Member| {
        let mut xattrs = member.xattrs.clone();
        xattrs.sort();
        xattrs
    };
    let is_device = matches!(archive.kind, Kind::CharDevice | Kind::BlockDevice);
    [
        ("the type", archive.kind == table.kind),
        ("the link", archive.link == table.link),
        ("the mode", archive.mode == table.mode),
        ("the owner", archive.uid == table.uid && archive.gid == table.gid),
        ("the size", archive.size == table.size),
        ("the time", archive.modified == table.modified),
        ("the device", !is_device || archive.device == table.device),
        ("the attributes", sorted(archive) == sorted(table)),
    ]
    .into_iter()
    .find_map(|(what, is_same)| (!is_same).then_some(what))
}

struct Composing<'p, R, W: Write> {
    tree: Tree<'p>,
    parts: Parts<'p, R>,
    guide: Guide<'p>,
    split: SplitWriter<W>,
    split_path: &'p Path,
    entries: u64,
}

/// Members, users and groups.
type Composed = (u64, Vec<u32>, Vec<u32>);

impl<R: Read> Composing<'_, R, BufWriter<File>> {
    fn run<S: Read>(mut self, reader: &mut Reader<SplitTar<S>>) -> Result<Composed> {
        // The stream was checked as a whole; where it does not fit itself, whoever made it is to blame.
        while let Some(member) = reader.next_member().map_err(StageChunkedError::Tar)? {
            self.entries = count(self.entries, &member)?;
            self.segment(reader)?;
            self.member(reader, &member)?;
        }
        while reader.trailing().map_err(StageChunkedError::Tar)? {
            self.segment(reader)?;
        }
        self.segment(reader)?;
        let next = reader.inner_mut().next_file().map_err(StageChunkedError::Fetch)?;
        if let Some(file) = next {
            let name = shown(&file.name);
            return Err(TocError::Refused(format!("tar-split stream has content of {name:?} in no place")).into());
        }
        if let Guide::Table(table) = &self.guide {
            table.finish()?;
        }
        let (uids, gids) = self.tree.finish().map_err(StageChunkedError::Tar)?;
        // Synced by itself: the driver's home may be another file system.
        self.split
            .finish()
            .and_then(|buffered| buffered.into_inner().map_err(io::IntoInnerError::into_error))
            .and_then(|file| file.sync_all())
            .map_err(path_error("write", self.split_path))?;
        Ok((self.entries, uids, gids))
    }

    fn member<S: Read>(&mut self, reader: &mut Reader<SplitTar<S>>, member: &Member) -> Result<()> {
        let path = clean(&member.name).map_err(StageChunkedError::Tar)?;
        let content = match &mut self.guide {
            Guide::Table(table) => table.take(member)?,
            Guide::Twin => Content::Twin(path.clone()),
        };
        let has_content = member.kind == Kind::File && member.size > 0;
        let is_elsewhere = member.sparse.is_some() || is_whiteout(&path);
        if is_elsewhere && (has_content || member.sparse.is_some()) {
            return Err(TocError::Unsuitable("a sparse file or a whiteout in it has content").into());
        }
        let seen = self.split.note(&path, member.size);
        if seen == Seen::AgainWithContent {
            return Err(StageChunkedError::Tar(TarError::Duplicate { name: shown(&member.name) }));
        }
        let mut crc = None;
        if has_content {
            let next = reader.inner_mut().next_file().map_err(StageChunkedError::Fetch)?;
            if next.is_none_or(|next| next.name != member.name || next.size != member.size) {
                let name = shown(&member.name);
                return Err(TocError::Refused(format!("tar-split stream has no content of {name:?}")).into());
            }
            let mut found = Crc64::new();
            self.parts.write(&mut self.tree, &path, member, &content, &mut |bytes| {
                found.update(bytes);
                reader.inner_mut().content(bytes)
            })?;
            reader.inner_mut().pass();
            reader.pass_content();
            crc = Some(found.finish());
        } else {
            self.tree.make(&path, member).map_err(StageChunkedError::Tar)?;
        }
        if seen == Seen::New {
            let written = self.split.file(&member.name, member.size, crc);
            written.map_err(path_error("write", self.split_path))?;
        }
        Ok(())
    }

    fn segment<S: Read>(&mut self, reader: &mut Reader<SplitTar<S>>) -> Result<()> {
        self.split.segment(reader.take_raw()).map_err(path_error("write", self.split_path))
    }
}
