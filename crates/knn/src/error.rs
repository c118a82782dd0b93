//! Everything that a search, a vote or a measurement refuses, each with what was expected.

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Input that this crate refuses.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A table without rows, or whose rows hold no numbers.
    #[error("{what}: {rows} rows of {dim} numbers; at least {least} and one number a row are needed")]
    TooSmall {
        /// Which table.
        what: &'static str,
        /// Its rows.
        rows: usize,
        /// Its numbers a row.
        dim: usize,
        /// The fewest rows that make sense.
        least: usize,
    },
    /// A table of more rows than an index (`u32`) can tell apart.
    #[error("{what}: {rows} rows are more than the {} that can be indexed; split the table", u32::MAX)]
    TooManyRows {
        /// Which table.
        what: &'static str,
        /// Its rows.
        rows: usize,
    },
    /// A slice that is not rows × dim long.
    #[error("{what}: {rows} rows of {dim} numbers are {} numbers, but {len} were given", rows * dim)]
    Length {
        /// Which table.
        what: &'static str,
        /// Numbers given.
        len: usize,
        /// Rows claimed.
        rows: usize,
        /// Numbers a row claimed.
        dim: usize,
    },
    /// NaN or an infinity.
    #[error("{what}: row {row} holds {value} at position {column}; features must be finite")]
    NotFinite {
        /// Which table.
        what: &'static str,
        /// The first such row.
        row: usize,
        /// Where in the row.
        column: usize,
        /// The value.
        value: f32,
    },
    /// Two tables that must be alike in shape and are not.
    #[error("{what} is {got:?} (rows, numbers a row) where {expected:?} was expected")]
    Shape {
        /// Which table.
        what: &'static str,
        /// Its shape.
        got: (usize, usize),
        /// The shape that it must have.
        expected: (usize, usize),
    },
    /// Rows of the queries and of the bank differ in length.
    #[error("queries have {queries} numbers a row and the bank has {bank}; both must come from the same encoder")]
    Dimension {
        /// Numbers a row of the queries.
        queries: usize,
        /// Numbers a row of the bank.
        bank: usize,
    },
    /// No neighbours asked for, or more than there are.
    #[error("k = {k}: between 1 and {available} neighbours can be had{}", if *excluded { " (each row leaves itself out)" } else { "" })]
    Neighbours {
        /// Neighbours asked for.
        k: usize,
        /// Neighbours that there are.
        available: usize,
        /// Whether each row is left out of its own search.
        excluded: bool,
    },
    /// Not one label a row.
    #[error("{what}: {labels} labels for {rows} rows; there must be one label a row")]
    LabelCount {
        /// Whose labels.
        what: &'static str,
        /// Labels given.
        labels: usize,
        /// Rows that they belong to.
        rows: usize,
    },
    /// A label that is none of the classes.
    #[error("{what}: row {row} has label {label}, but there are {classes} classes (0 to {})", (*classes).max(1) - 1)]
    Label {
        /// Whose label.
        what: &'static str,
        /// The first such row.
        row: usize,
        /// Its label.
        label: u32,
        /// Number of classes.
        classes: usize,
    },
    /// A vote among no classes.
    #[error("0 classes: a vote needs at least one")]
    NoClasses,
    /// A temperature that is not above zero.
    #[error("temperature {0}: it must be a finite number above 0")]
    Temperature(f32),
    /// Neighbours that point outside the labelled bank: they are of another bank.
    #[error("neighbour {index} of row {row} has no label: the bank has {rows} rows; were the neighbours found in another bank?")]
    Foreign {
        /// The query.
        row: usize,
        /// The neighbour.
        index: u32,
        /// Labelled rows.
        rows: usize,
    },
    /// Nothing to choose from.
    #[error("no {0} to choose from: give at least one")]
    NoSettings(&'static str),
    /// More or fewer clusters than the rows allow.
    #[error(
        "{clusters} clusters of {rows} rows: expected at least one cluster (two for a silhouette) and fewer clusters than rows"
    )]
    Clusters {
        /// Clusters asked for, or those that have rows.
        clusters: usize,
        /// Rows.
        rows: usize,
    },
    /// Too many rows for all distances at once.
    #[error("{rows} rows are more than the {most} whose distances are kept at once; take a part of them")]
    TooManyPairs {
        /// Rows given.
        rows: usize,
        /// Most rows.
        most: usize,
    },
    /// Fewer than two classes have rows: nothing can be told apart.
    #[error("{what}: all {rows} rows are of one class; a classifier needs rows of at least two")]
    OneClass {
        /// Which table.
        what: &'static str,
        /// Its rows.
        rows: usize,
    },
    /// A penalty that is not above zero.
    #[error("C = {0}: the inverse of a penalty must be a finite number above 0")]
    Penalty(f64),
    /// A solver gave up.
    #[error("{0}")]
    Solver(String),
}
