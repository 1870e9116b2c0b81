//! What became of a verified event.

/// The outcome for a verified event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A quorum queue confirmed it, or its spool row is on disk.
    Accepted,
    /// An earlier attempt already made it safe.
    Duplicate(Layer),
    /// It is safe, but its id was accepted with another body before. It becomes a dead letter.
    Conflict,
    /// Neither store accepted it in time.
    Unavailable,
}

/// Where a duplicate was detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// By this process's memory of recent ids.
    Memory,
    /// By the same event in its batch.
    Batch,
    /// By a recent receipt.
    Receipt,
    /// By its row in `events` or the spool.
    Stored,
}

impl Layer {
    /// Every layer.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Batch, Self::Receipt, Self::Stored];

    /// The layer as a metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Batch => "batch",
            Self::Receipt => "receipt",
            Self::Stored => "stored",
        }
    }
}
