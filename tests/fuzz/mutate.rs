//! A small mutator: from the corpus, a dictionary and a seed to inputs that are almost right.

/// SplitMix64: every bit of the seed counts, and the story is the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The dice of round `round` of story `seed`.
    pub(crate) fn of(seed: u64, round: u64) -> Self {
        let mut dice = Self(seed ^ round.wrapping_mul(0xd134_2543_de82_ef95));
        dice.roll();
        dice
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`; 0 if there is none.
    fn below(&mut self, limit: usize) -> usize {
        (self.roll() % limit.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// A piece of `bytes`, mostly short.
    fn piece(&mut self, bytes: &[u8]) -> std::ops::Range<usize> {
        let start = self.below(bytes.len() + 1);
        let most = if self.below(4) == 0 { bytes.len() } else { 12 };
        start..(start + self.below(most + 1)).min(bytes.len())
    }
}

/// Longest input: what is larger finds nothing new and takes its time.
const LENGTH_MAX: usize = 16 * 1024;

/// An input near the corpus.
pub(crate) fn mutate(dice: &mut Dice, corpus: &[Vec<u8>], words: &[&[u8]]) -> Vec<u8> {
    let mut input = dice.pick(corpus).clone();
    let changes = 1 + dice.below(4) * dice.below(4);
    for _ in 0..changes {
        change(dice, &mut input, corpus, words);
    }
    input.truncate(LENGTH_MAX);
    input
}

fn change(dice: &mut Dice, input: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&[u8]]) {
    let at = dice.below(input.len() + 1);
    match dice.below(9) {
        0 if at < input.len() => input[at] ^= 1 << dice.below(8),
        1 if at < input.len() => {
            input[at] = *dice.pick(b"\x00\x01\x7f\x80\xff\n =\"'[]{}$.%/&?:,\\09-")
        }
        2 => {
            let byte = dice.roll() as u8;
            input.insert(at, byte);
        }
        3 => drop(input.drain(dice.piece(input))),
        4 => {
            let copy = input[dice.piece(input)].to_vec();
            input.splice(at..at, copy);
        }
        5 => {
            let piece = dice.piece(input);
            let word = dice.pick(words).to_vec();
            input.splice(piece, word);
        }
        6 => {
            let word = dice.pick(words).to_vec();
            input.splice(at..at, word);
        }
        7 => {
            let other = dice.pick(corpus);
            let piece = dice.piece(other);
            input.splice(at..at, other[piece].to_vec());
        }
        _ => number(dice, input),
    }
}

/// Replaces a run of digits by a number at which programs break.
fn number(dice: &mut Dice, input: &mut Vec<u8>) {
    let starts: Vec<usize> = (0..input.len())
        .filter(|i| input[*i].is_ascii_digit() && (*i == 0 || !input[*i - 1].is_ascii_digit()))
        .collect();
    if starts.is_empty() {
        return;
    }
    let start = *dice.pick(&starts);
    let length = input[start..]
        .iter()
        .take_while(|b| b.is_ascii_digit())
        .count();
    let edges: [u128; 12] = [
        0,
        1,
        255,
        256,
        65_535,
        65_536,
        (1 << 31) - 1,
        1 << 32,
        (1 << 63) - 1,
        1 << 63,
        (1 << 64) - 1,
        1 << 64,
    ];
    let text = match dice.below(3) {
        0 => dice.pick(&edges).to_string(),
        1 => (dice.roll() >> dice.below(64)).to_string(),
        _ => (dice.roll() % 100).to_string(),
    };
    input.splice(start..start + length, text.into_bytes());
}

/// Makes a failing input smaller for as long as it fails.
pub(crate) fn shrink(mut input: Vec<u8>, fails: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut budget = 2_000;
    let mut size = input.len().div_ceil(2);
    while size > 0 && budget > 0 {
        let mut at = 0;
        while at < input.len() && budget > 0 {
            budget -= 1;
            let mut smaller = input.clone();
            smaller.drain(at..(at + size).min(input.len()));
            if fails(&smaller) {
                input = smaller;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    input
}
