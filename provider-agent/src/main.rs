//! The daemon `provider-agent` and its operator's commands.

mod command;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use manual::Manual;
use provider_agent::Config;
use provider_agent::page::access::ACCOUNT;
use provider_agent::store::prepare_directory;

use command::export::Export;
use command::meter::MeterCommand;
use command::net::NetCommand;
use command::round::RoundCommand;
use command::{At, export, meter, net, output, round, serve, store};

/// Opens DC-nets, runs their rounds, stores and publishes the verified sums.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent until SIGTERM or SIGINT
    Run {
        #[command(flatten)]
        at: At,
    },
    /// Check the configuration and the files it names; exit code 1 if anything is wrong
    CheckConfig {
        #[command(flatten)]
        at: At,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Set the password of the operator's page. It is asked for, or taken from the first line of
    /// the standard input
    SetPassword {
        #[command(flatten)]
        at: At,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Make, close and look at nets
    Net {
        #[command(subcommand)]
        command: NetCommand,
    },
    /// Look at the meters of a net
    Meter {
        #[command(subcommand)]
        command: MeterCommand,
    },
    /// Look at rounds
    Round {
        #[command(subcommand)]
        command: RoundCommand,
    },
    /// Write the rounds of a net to standard output
    Export(Export),
    /// Write all that is stored into a new file, mode 0600; the agent may run meanwhile
    Backup {
        #[command(flatten)]
        at: At,
        /// The file to make
        file: PathBuf,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a backup the state of this provider; the agent must be stopped. A restored net gives
    /// no roster to rounds that may have had one since the backup, and nobody joins, leaves or
    /// draws before the sum of a later round is verified
    Restore {
        #[command(flatten)]
        at: At,
        /// The backup
        file: PathBuf,
        /// Move the database that is there aside
        #[arg(long)]
        replace: bool,
        /// The agent has certainly not run since the backup was made, for instance because it
        /// was stopped to move it here: its nets go on at once
        #[arg(long)]
        newest: bool,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Write man pages and shell completions
    #[command(hide = true)]
    Manual(Manual),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("provider-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run { at } => serve::run(&at.config),
        Command::CheckConfig { at, json } => check_config(&at, json),
        Command::Net { command } => net::run(command),
        Command::Meter { command } => meter::run(command),
        Command::Round { command } => round::run(command),
        Command::Export(export) => export::run(export),
        Command::Backup { at, file, json } => store::backup(&at, &file, json),
        Command::Restore {
            at,
            file,
            replace,
            newest,
            json,
        } => store::restore(&at, &file, replace, newest, json),
        Command::SetPassword { at, json } => set_password(&at, json),
        Command::Manual(manual) => Ok(manual.write(Cli::command())?),
    }
}

fn set_password(at: &At, json: bool) -> anyhow::Result<()> {
    let directory = Config::load(&at.config)?.state_directory;
    let password = secrets::password::ask("the page")?;
    prepare_directory(&directory)?;
    page::password::set_password(&directory, &password)?;
    let user = ACCOUNT.user;
    if json {
        return output::json(&serde_json::json!({ "user": user }));
    }
    output::line(format_args!(
        "the page asks for it from now on; the user is {user:?}"
    ))
}

fn check_config(at: &At, json: bool) -> anyhow::Result<()> {
    let remarks = Config::load(&at.config)?.check()?;
    if json {
        return output::json(&serde_json::json!({ "ok": true, "remarks": remarks }));
    }
    for remark in remarks {
        output::line(format_args!("note: {remark}"))?;
    }
    output::line(format_args!("{}: ok", at.config.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The commands that do something, by their names, with whether they print JSON.
    fn commands(of: &clap::Command, before: &str) -> Vec<(String, bool)> {
        let shown = of
            .get_subcommands()
            .filter(|command| !command.is_hide_set());
        let found = shown.flat_map(|command| {
            let name = format!("{before}{}", command.get_name());
            if command.has_subcommands() {
                return commands(command, &format!("{name} "));
            }
            let mut arguments = command.get_arguments();
            vec![(name, arguments.any(|argument| argument.get_id() == "json"))]
        });
        found.collect()
    }

    #[test]
    fn the_operators_document_names_every_command_and_each_prints_json() {
        let document = include_str!("../../docs/operating-provider.md");
        let (_, table) = document.split_once("\n| | |\n").unwrap();
        let (table, _) = table.split_once("\n\n").unwrap();
        let commands = commands(&Cli::command(), "");
        assert!(commands.len() > 10, "{commands:?}");
        for (name, prints_json) in commands {
            if name == "run" {
                continue;
            }
            assert!(table.contains(&format!("`{name} ")), "{name}");
            assert_eq!(prints_json, name != "export", "{name}");
        }
    }
}
