//! Seeded randomness for back-off: the same seed gives the same pauses.

use crate::time::Span;

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators").
#[derive(Clone, Debug)]
pub(super) struct Jitter(u64);

impl Jitter {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform between zero and `most`: full jitter, so that workers that fell together do not rise together.
    pub(super) fn up_to(&mut self, most: Span) -> Span {
        let scaled = u128::from(self.next()) * (u128::from(most.as_nanos()) + 1);
        Span::nanos((scaled >> 64) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_in_bounds_and_repeats_by_seed() {
        let (mut a, mut b) = (Jitter::new(7), Jitter::new(7));
        for _ in 0..1_000 {
            let span = a.up_to(Span::secs(3));
            assert!(span <= Span::secs(3));
            assert_eq!(span, b.up_to(Span::secs(3)));
        }
        assert_eq!(a.up_to(Span::ZERO), Span::ZERO);
    }
}
