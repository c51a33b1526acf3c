//! Chance that can be repeated.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// A row of numbers that follows from a seed.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The row of a seed.
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// A row that depends on the seed and on what it is for, and on nothing that happened before.
    pub fn about(seed: u64, what: impl Hash) -> Dice {
        let mut hasher = DefaultHasher::new();
        (seed, what).hash(&mut hasher);
        Dice(hasher.finish())
    }

    /// The next number (SplitMix64).
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.roll() % end.max(1)
    }

    /// True this often in a thousand.
    pub fn in_a_thousand(&mut self, times: u64) -> bool {
        self.below(1000) < times
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A time of so many milliseconds at most, and at least one.
    pub fn up_to(&mut self, milliseconds: u64) -> Duration {
        Duration::from_millis(1 + self.below(milliseconds))
    }
}
