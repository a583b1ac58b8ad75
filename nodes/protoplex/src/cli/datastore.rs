//! What may be said of the datastore.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Single;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Datastore {
    #[command(flatten)]
    pub node: Single,
    #[command(subcommand)]
    pub command: Option<DatastoreCommand>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DatastoreCommand {
    /// Write everything in the configured database to a file, as of one moment; datastores may run meanwhile
    ///
    /// One JSON object a line. A file that is there is replaced once the new one is whole. Bodies of files are not in it:
    /// they are in the storage; nor is the folder cluster/ of the data directory, of which keep a copy, too.
    #[command(after_help = "\
Examples:
  protoplex datastore export backup.jsonl.gz
  protoplex datastore export - | ssh backup 'cat > edge.jsonl'")]
    Export {
        /// The file, compressed where its name ends in .gz; - for standard output
        file: PathBuf,
    },
    /// Put what was exported into the configured database, all or nothing; no datastore may run on it
    ///
    /// What has come is read back and compared before it counts. Numbers that are never given twice (terms, versions of
    /// builds) go on beyond those that may have been given since the export.
    Import {
        /// The file, compressed or not; - for standard input
        file: PathBuf,
        /// Put it in the place of what is there
        #[arg(long)]
        replace: bool,
    },
    /// Move everything to another database, or bring this one to the present schema; no datastore may run on either
    ///
    /// With --to everything in the configured database is put into the other one, all or nothing, and compared. No
    /// datastore opens the old one any more; it is left as it is.
    #[command(after_help = "\
Examples:
  protoplex datastore migrate                                          the present schema, as a start would
  protoplex datastore migrate --to postgres://edge@db.internal/edge    from the file to PostgreSQL
  protoplex datastore migrate --to sqlite                              from PostgreSQL to the file")]
    Migrate(Migrate),
}

#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// Where to: postgres://USER@HOST/DATABASE, or sqlite for the file in the data directory
    #[arg(long, value_name = "URL")]
    pub to: Option<String>,
    /// A file with the password for it on its first line
    #[arg(long, value_name = "FILE", requires = "to")]
    pub password_file: Option<PathBuf>,
    /// Put it in the place of what is there
    #[arg(long, requires = "to")]
    pub replace: bool,
    /// Have the configured database count again, as it was when everything was moved away from it
    #[arg(long, conflicts_with = "to")]
    pub undo: bool,
}
