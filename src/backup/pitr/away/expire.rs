//! Which base backups and which WAL of a destination may go, by the rules of this machine's own archive; and their removal.
//!
//! Names alone decide: what is sealed cannot be opened here. Nothing goes before those that stay were looked at one by one: a
//! listing may be old.

use std::collections::BTreeSet;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::super::archive::Archive;
use super::super::bases::{self, Base};
use super::super::expiry::{self, Keep};
use super::super::timeline::Lineage;
use super::super::{histories, live};
use super::Away;
use super::names::{BaseName, Held, Inventory};
use crate::backup::store::SUFFIX;
use crate::exit::{Code, Failure};

/// How many are removed at once.
const AT_ONCE: usize = 4;

/// What was removed, by name.
#[derive(Debug, Default)]
pub struct Expired {
    pub names: BTreeSet<String>,
    pub bases: Vec<BaseName>,
}

impl Away {
    /// Remove what is beyond `keep`. `archive` is that of this machine, which knows how its timelines came about.
    ///
    /// # Errors
    /// It cannot be listed, or something cannot be removed.
    pub(super) async fn expire(&self, archive: &Archive, keep: Keep) -> anyhow::Result<Expired> {
        let listing = self.listing().await?;
        let inventory = Inventory::of(&listing.iter().map(|(held, _)| held.clone()).collect::<Vec<_>>());
        let Some(gone) = surplus(&inventory, archive, keep)? else { return Ok(Expired::default()) };
        let kept: Vec<BaseName> = inventory.bases.iter().filter(|base| !gone.contains(base)).cloned().collect();
        for base in &kept {
            self.check_there(base).await?;
        }
        let newest = kept.last().map(|base| base.name.clone());
        // One that this machine has may be on its way at this moment.
        let here: Vec<String> = bases::bases(archive)?.into_iter().map(|base| base.name).collect();
        let is_left =
            |cut: &&BaseName| newest.as_ref().is_some_and(|newest| cut.name < *newest) && !here.contains(&cut.name);
        let cut = inventory.cut.iter().filter(is_left);
        // The description goes first: what is left of a removal that was cut short is no base backup.
        let descriptions = gone.iter().map(|base| Held::Description(base.clone()));
        let data = gone.iter().chain(cut).map(|base| Held::Data(base.clone()));
        let wal = inventory.unneeded(&kept).into_iter().map(Held::Wal);
        let mut expired = Expired { bases: gone.clone(), ..Expired::default() };
        for held in descriptions.chain(data) {
            self.remove(&held).await?;
            expired.names.insert(held.to_string());
        }
        let wal: BTreeSet<String> = wal.map(|held| held.to_string()).collect();
        let files = listing.iter().map(|(_, file)| file.name.clone()).filter(|name| {
            let plain = name.strip_suffix(SUFFIX).unwrap_or(name);
            wal.contains(plain)
        });
        let removing = files.map(|name| async move { self.store().delete(&name).await.map_err(Failure::from) });
        stream::iter(removing).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
        expired.names.extend(wal);
        Ok(expired)
    }

    /// Whether both files of `base` are there at this moment.
    async fn check_there(&self, base: &BaseName) -> anyhow::Result<()> {
        for held in [Held::Description(base.clone()), Held::Data(base.clone())] {
            let (plain, sealed) = (held.to_string(), format!("{held}{SUFFIX}"));
            let is_there = self.store().head(&sealed).await.map_err(Failure::from)?.is_some()
                || self.store().head(&plain).await.map_err(Failure::from)?.is_some();
            if !is_there {
                let place = &self.destination;
                let text =
                    format!("{plain} is not in {place}, whose listing names it or its like: nothing is removed there");
                return Err(Failure::new(Code::Failed, text).into());
            }
        }
        Ok(())
    }
}

/// The base backups that may go; `None`: nothing may, because how the newest came about is not known here.
fn surplus(inventory: &Inventory, archive: &Archive, keep: Keep) -> anyhow::Result<Option<Vec<BaseName>>> {
    let outlines: Vec<Base> = inventory.bases.iter().filter_map(BaseName::outline).collect();
    let Some(newest) = outlines.last() else { return Ok(None) };
    let timeline = newest.stop_timeline;
    let lineage = match histories::lineage(archive, timeline)? {
        Some(lineage) => lineage,
        None if timeline == 1 => Lineage::alone(1),
        None => return Ok(None),
    };
    let birth = live::births(archive, None, &[timeline]).pop().filter(|_| timeline > 1);
    let gone = expiry::surplus(&outlines, &lineage, birth.as_ref(), keep);
    Ok(Some(inventory.bases.iter().filter(|base| gone.contains(&base.name)).cloned().collect()))
}
