//! Has the crate built anew when a migration is added: `sqlx::migrate!` reads the folder, which cargo doesn't watch by itself.

fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
