//! The losses' passes over a tile of dot products, in place.
//!
//! With a dot product a and z = ±1 for positives and all others: the sigmoid pass (arXiv:2303.15343) makes
//! s = scale·a + bias, replaces a by w = −z σ(−z s) and returns Σ log σ(z s), Σ w a and Σ w. The softmax
//! passes (arXiv:2103.00020) make s = scale·a; `stats` adds to each row's and column's pair (maximum, Σ
//! exp(s − maximum)), `weights` replaces a by w = softmax over the row + softmax over the column − 2 at
//! positives, and returns Σ w a and the sum of a over the positives.
//!
//! Shapes: `tile` `[n, m]` by rows, `rows` `[n, 2]`, `columns` `[m, 2]`.

pub mod math;
pub mod plain;
pub mod simd;

/// Which entries of a tile are positives.
#[derive(Debug, Clone, Copy)]
pub enum Marks<'a> {
    /// None of them.
    Nowhere,
    /// Entries (row + k, column + k) for k < length: the diagonal of the global batch.
    Diagonal {
        /// Row of the first.
        row: usize,
        /// Column of the first.
        column: usize,
        /// How many there are.
        length: usize,
    },
    /// Entries whose labels are equal.
    Labels {
        /// One for each row.
        rows: &'a [i64],
        /// One for each column.
        columns: &'a [i64],
    },
}

/// The positives of one row of a tile.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RowMarks<'a> {
    /// There are none.
    Nowhere,
    /// This column alone.
    Column(usize),
    /// Columns whose label is the row's own.
    Labels {
        /// The row's.
        own: i64,
        /// One for each column.
        columns: &'a [i64],
    },
}

impl<'a> Marks<'a> {
    /// Returns the positives of row `index`.
    #[inline(always)]
    pub(crate) fn row(&self, index: usize) -> RowMarks<'a> {
        match *self {
            Marks::Diagonal { row, column, length } if (row..row + length).contains(&index) => {
                RowMarks::Column(column + index - row)
            }
            Marks::Nowhere | Marks::Diagonal { .. } => RowMarks::Nowhere,
            Marks::Labels { rows, columns } => RowMarks::Labels { own: rows[index], columns },
        }
    }
}

impl RowMarks<'_> {
    /// Whether this column is a positive.
    pub(crate) fn positive(&self, column: usize) -> bool {
        match *self {
            RowMarks::Nowhere => false,
            RowMarks::Column(positive) => column == positive,
            RowMarks::Labels { own, columns } => columns[column] == own,
        }
    }
}
