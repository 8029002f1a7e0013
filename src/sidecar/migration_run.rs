//! Which migrations a database gets: what a person wrote; else what the project was found to have, unless the database has the
//! built-in ones already.

use crate::config::{MigrationRun, Migrations};
use crate::plan::{DatabaseUrl, in_one_line};
use crate::schema;

/// What is to migrate the database at `url`.
///
/// # Errors
/// Nobody wrote it, and the database cannot be asked.
pub async fn of_database(url: &DatabaseUrl, migrations: &Migrations) -> anyhow::Result<MigrationRun> {
    let run = &migrations.run;
    if migrations.chosen || *run == MigrationRun::SeaOrm || !schema::has_built_in(url).await? {
        return Ok(run.clone());
    }
    let instead = match run {
        MigrationRun::Command(words) => format!("`{}`", in_one_line(words)),
        MigrationRun::Sql => "the SQL files".to_owned(),
        MigrationRun::None | MigrationRun::SeaOrm => "no migrations".to_owned(),
    };
    tracing::info!(
        "database {} has the tables of Tandem's built-in migrations, so these go on (migrations.run = \"seaorm\"); for \
         {instead} in their place write migrations.run, or take them back first: `tandem migrate down 4`",
        url.database
    );
    Ok(MigrationRun::SeaOrm)
}
