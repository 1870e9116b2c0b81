//! Rebuilds the embedded schema when a migration is added.

fn main() {
    println!("cargo:rerun-if-changed=.");
}
