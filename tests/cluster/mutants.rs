//! Ways to get it wrong. Each stands between the engine and the world and does one thing less than is needed; a simulation that does not
//! notice would not notice it in the engine either.

/// What is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mutant {
    #[default]
    None,
    /// The read that verifies a renewal is answered from memory, in the term that the renewal was answered in.
    NoRead,
    /// A renewal counts from its answer.
    FromReceipt,
    /// Both: what whoever uses the lease API as it comes does.
    PlainLease,
    /// Deadlines pass by BOOTTIME alone.
    OneClock,
    /// Those that the supervisor keeps where the keeper cannot.
    OneClockByHand,
    /// A tick is claimed whether or not somebody has.
    NoClaim,
    /// It is claimed, though somebody had it and has forgotten.
    NoPast,
    /// Nobody but the supervisor kills, and nobody confirms that he will.
    NoKeeper,
}
