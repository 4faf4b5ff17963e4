//! A lock with slots is as many files. That all who use it mean the same number is looked up in the records of those who hold one.

use std::{fs, path::Path};

use crate::{
    locks::{
        file::{LockFault, LockFile, holder_by_kernel},
        predecessor::{Own, Patience, settle},
        record::Record,
    },
    time::Span,
};

/// What is left of a dead holder of another slot is waited for this long at a time.
const PATIENCE: Span = Span::secs(1);

/// Who holds a slot of the lock whose first file this is, as one of another number than `slots`; for people. Two that differ and begin at once
/// both see the other, if both look after they have written their record.
pub fn other_number(first: &Path, slots: u32) -> Result<Option<String>, LockFault> {
    for file in files_of(first) {
        if let Some(record) = record_of_another(&file, slots)?
            && holder_by_kernel(&file).is_some()
        {
            return Ok(of_another_number(&record, slots));
        }
    }
    Ok(None)
}

/// Does this record say another number than `slots`? For people.
pub fn of_another_number(record: &Record, slots: u32) -> Option<String> {
    let theirs = record.slots.filter(|theirs| *theirs != slots)?;
    let holder = record.holder();
    Some(format!(
        "it has {theirs} slots for {holder}, and {slots} here; say the same number"
    ))
}

/// Is there a slot of another number that is not given back? Then [`settle_others`] has something to do; it has, too, where that cannot be told.
pub fn others_held(first: &Path, slots: u32) -> bool {
    let files = files_of(first);
    let mut others = files.iter().map(|file| record_of_another(file, slots));
    others.any(|other| !matches!(other, Ok(None)))
}

/// Ends what holders of another number of slots, dead since, left behind: no file that we may take says anything of them. Blocks; an error says who
/// is left, for people.
pub fn settle_others(first: &Path, slots: u32, own: Own<'_>) -> Result<(), String> {
    for file in files_of(first) {
        let of_another =
            |file: &LockFile| record_of_another(file, slots).map_err(|fault| fault.to_string());
        if of_another(&file)?.is_none() || !file.try_take().map_err(|fault| fault.to_string())? {
            continue;
        }
        // Read again, now that nobody else may write.
        if let Some(record) = of_another(&file)? {
            settle(file.path(), Some(&record), own, Patience(PATIENCE))?;
            let free = Record {
                held: false,
                ..record
            };
            file.write(&free).map_err(|fault| fault.to_string())?;
        }
    }
    Ok(())
}

/// Its record, if that says that it is held, and one of another number.
fn record_of_another(file: &LockFile, slots: u32) -> Result<Option<Record>, LockFault> {
    let differs = |record: &Record| {
        let is_held = record.held && record.is_of_this_boot();
        is_held && of_another_number(record, slots).is_some()
    };
    Ok(file.record()?.filter(differs))
}

/// Every slot's file that there is.
fn files_of(first: &Path) -> Vec<LockFile> {
    let (Some(directory), Some(stem)) = (first.parent(), first.file_stem()) else {
        return Vec::new();
    };
    let is_slot = |name: &std::ffi::OsStr| {
        let path = Path::new(name);
        let number = path.extension().and_then(|slot| slot.to_str());
        path.file_stem() == Some(stem)
            && number.is_some_and(|slot| slot.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| is_slot(&entry.file_name()))
        .filter_map(|entry| LockFile::open(&entry.path(), false, true).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locks::record::tests::record;

    #[test]
    fn another_number_counts_while_it_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let (first, third) = (dir.path().join("a.b.0"), dir.path().join("a.b.2"));
        let other = LockFile::open(&third, false, true).unwrap();
        assert!(other.try_take().unwrap());
        let held = Record {
            slots: Some(3),
            ..record(&third)
        };
        other.write(&held).unwrap();
        assert_eq!(other_number(&first, 3).unwrap(), None);
        let said = other_number(&first, 1).unwrap().unwrap();
        assert!(
            said.contains("has 3 slots") && said.contains("1 here"),
            "{said}"
        );
        // Another lock's slots are none of its business.
        assert_eq!(other_number(&dir.path().join("a.0"), 1).unwrap(), None);
        // Dead: nothing of it is left, which is then written there.
        drop(other);
        assert_eq!(other_number(&first, 1).unwrap(), None);
        assert!(others_held(&first, 1) && !others_held(&first, 3));
        let own = Own {
            cookie: "another run",
            cgroups: None,
        };
        settle_others(&first, 1, own).unwrap();
        assert!(!others_held(&first, 1));
        let file = LockFile::open(&third, false, true).unwrap();
        assert!(!file.record().unwrap().unwrap().held);
    }
}
