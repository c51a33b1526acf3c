//! The binary: one subcommand per role. Wiring only.
mod client;

use clap::{Parser, Subcommand};

/// Kubernetes storage from a claim to a mounted directory.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Create or change the objects of a manifest.
    Apply(client::Apply),
    /// Print objects as the server renders them.
    Get(client::Get),
    /// Delete objects and wait until they are gone.
    Delete(client::Delete),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().role {
        Role::Apply(arguments) => client::apply(arguments).await,
        Role::Get(arguments) => client::get(arguments).await,
        Role::Delete(arguments) => client::delete(arguments).await,
    }
}
