//! A disk that loses power, tears writes and fails, the same way for the same seed.

use std::io;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

/// Bytes that a disk writes completely or not at all.
const SECTOR: usize = 512;

/// Small, fast and good enough: xorshift64*.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `sides`.
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

/// What the disk will do to its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Power goes after this many more changes and syncs: everything fails from then on.
    PowerCut(u64),
    /// The sync after this many more fails; what it should have made durable may be lost.
    Sync(u64),
    /// The write after this many more fails.
    Write(u64),
}

#[derive(Debug, Default)]
struct Platter {
    /// What survives a power cut.
    durable: Vec<u8>,
    /// What is read.
    cached: Vec<u8>,
    /// Changes since the last sync, in order.
    pending: Vec<Change>,
    /// Changes that a failed sync gave up on: read for now, but no later sync makes them durable.
    given_up: bool,
    fault: Option<Fault>,
    off: bool,
    /// It has no room: writes and changes of the length fail.
    full: bool,
    opened: u64,
}

/// Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Mutex<Platter>>);

impl Disk {
    pub(crate) fn set_fault(&self, fault: Fault) {
        self.0.lock().unwrap().fault = Some(fault);
    }

    /// The disk as whoever opens it finds it: after a failed sync the kernel's clean pages are dropped, and what is read
    /// is what the disk holds.
    pub(crate) fn open(&self) -> Disk {
        let mut platter = self.0.lock().unwrap();
        platter.opened += 1;
        if platter.given_up && !platter.off {
            let image = platter.survivors(&mut Dice::new(platter.pending.len() as u64 + platter.opened));
            platter.durable = image.clone();
            platter.cached = image;
            platter.pending.clear();
            platter.given_up = false;
        }
        Disk(self.0.clone())
    }

    /// How often it was opened.
    pub(crate) fn opened(&self) -> u64 {
        self.0.lock().unwrap().opened
    }

    pub(crate) fn is_off(&self) -> bool {
        self.0.lock().unwrap().off
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.0.lock().unwrap().full = full;
    }

    /// The disk as another process finds it when this one is killed: with all that the kernel cached. After a failed
    /// sync it is what the disk holds, as after a power cut: the store drops the kernel's clean pages when it opens.
    pub(crate) fn after_kill(&self, dice: &mut Dice) -> Disk {
        let platter = self.0.lock().unwrap();
        if platter.given_up || platter.off {
            drop(platter);
            return self.after_power_cut(dice);
        }
        Disk(Arc::new(Mutex::new(Platter {
            durable: platter.durable.clone(),
            cached: platter.cached.clone(),
            pending: platter.pending.clone(),
            ..Platter::default()
        })))
    }

    /// The disk after a power cut: each change since the last sync is there, lost, or torn at a sector.
    pub(crate) fn after_power_cut(&self, dice: &mut Dice) -> Disk {
        Disk::from_image(self.0.lock().unwrap().survivors(dice))
    }

    pub(crate) fn image(&self) -> Vec<u8> {
        self.0.lock().unwrap().cached.clone()
    }

    pub(crate) fn from_image(image: Vec<u8>) -> Disk {
        Disk(Arc::new(Mutex::new(Platter { durable: image.clone(), cached: image, ..Platter::default() })))
    }
}

fn write(image: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if image.len() < offset + data.len() {
        image.resize(offset + data.len(), 0);
    }
    image[offset..offset + data.len()].copy_from_slice(data);
}

impl Platter {
    /// What is there when only some of the changes since the last sync were made, and some of those in part.
    fn survivors(&self, dice: &mut Dice) -> Vec<u8> {
        let mut image = self.durable.clone();
        // In some power cuts all is lost, in some nearly nothing: both ends are interesting.
        let survival = [0, 1, 5, 9, 10][dice.roll(5) as usize];
        for change in &self.pending {
            if dice.roll(10) >= survival {
                continue;
            }
            match change {
                Change::Length(length) => image.resize(*length, 0),
                Change::Write(offset, data) => {
                    for (index, sector) in data.chunks(SECTOR).enumerate() {
                        if data.len() > SECTOR && survival < 10 && dice.roll(4) == 0 {
                            continue;
                        }
                        write(&mut image, offset + index * SECTOR, sector);
                    }
                }
            }
        }
        image
    }

    fn failed() -> io::Error {
        io::Error::other("simulated I/O error")
    }

    /// Counts a change or sync against the fault.
    fn step(&mut self, is_sync: bool) -> io::Result<()> {
        if self.off {
            return Err(Platter::failed());
        }
        if self.full && !is_sync {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let left = match &mut self.fault {
            Some(Fault::PowerCut(left)) => left,
            Some(Fault::Sync(left)) if is_sync => left,
            Some(Fault::Write(left)) if !is_sync => left,
            _ => return Ok(()),
        };
        if *left > 0 {
            *left -= 1;
            return Ok(());
        }
        self.off = matches!(self.fault, Some(Fault::PowerCut(_)));
        self.given_up |= is_sync;
        self.fault = None;
        Err(Platter::failed())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().cached.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.0.lock().unwrap();
        if platter.off {
            return Err(Platter::failed());
        }
        let offset = offset as usize;
        let found = platter.cached.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.step(false)?;
        platter.cached.resize(length as usize, 0);
        platter.pending.push(Change::Length(length as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.step(true)?;
        // A sync after a failed one succeeds without repairing anything, as Linux does.
        if !platter.given_up {
            platter.durable = platter.cached.clone();
            platter.pending.clear();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.step(false)?;
        write(&mut platter.cached, offset as usize, data);
        platter.pending.push(Change::Write(offset as usize, data.to_vec()));
        Ok(())
    }
}
