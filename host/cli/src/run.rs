//! `espalier run`: run file, overrides and registry become a run; its events become words or JSON lines.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use espalier_runtime::diagnostic::Diagnostic;
use espalier_runtime::events::{Ending, Event, Observer};
use espalier_runtime::lock;
use espalier_runtime::registry::Registry;
use espalier_runtime::run::{self, Pins, RunOptions};
use espalier_runtime::runfile::{self, Overrides};

use crate::args::{self, exit};
use crate::output::{self, Stream};
use crate::view::View;

/// Carries out `espalier run`.
pub fn command(args: args::Run) -> ExitCode {
    let started = Arc::new(AtomicBool::new(false));
    let cancel = Arc::new(AtomicBool::new(false));
    listen_for_signals(cancel.clone(), started.clone());

    let stream = if args.json {
        Stream::Error
    } else {
        Stream::Out
    };
    let mut reporter = Reporter {
        view: View::new(stream),
        json: args.json,
        started: started.clone(),
    };
    let result = carry_out(&args, cancel, &mut reporter);
    reporter.view.close();
    ExitCode::from(match result {
        Ok(Ending::Finished(_)) => exit::OK,
        Ok(Ending::Interrupted { .. }) => exit::INTERRUPTED,
        Err(error) => {
            reporter.event(&Event::Failed {
                error: error.clone(),
            });
            output::error(&error);
            if started.load(Ordering::Relaxed) {
                exit::FAILED
            } else {
                exit::WRONG_INPUT
            }
        }
    })
}

fn carry_out(
    args: &args::Run,
    cancel: Arc<AtomicBool>,
    reporter: &mut Reporter,
) -> Result<Ending, Diagnostic> {
    let overrides = Overrides {
        sets: args.sets.clone(),
        seed: args.seed,
        threads: args.threads,
    };
    let plan = runfile::load(&args.file, &overrides)?;
    let registry = match &args.registry {
        Some(file) => file.clone(),
        None => Registry::find(args.file.parent().unwrap_or(Path::new("")))?,
    };
    let options = RunOptions {
        out: args.out.clone(),
        resume: args.resume.clone(),
        registry,
        cancel,
    };
    let pins = Pins {
        trust: args.trust.clone(),
        lock: Some(lock::beside(&args.file)),
        locked: args.locked,
    };
    let mut execute = || run::execute_pinned(&plan, &options, &pins, reporter);
    match &args.profile {
        None => execute(),
        Some(trace) => run::profiled(trace.as_deref(), execute),
    }
}

/// Events to a person and, if asked for, to a machine.
struct Reporter {
    view: View,
    json: bool,
    started: Arc<AtomicBool>,
}

impl Observer for Reporter {
    fn event(&mut self, event: &Event) {
        if self.json {
            match serde_json::to_string(event) {
                Ok(text) => output::line(Stream::Out, text),
                Err(error) => output::line(
                    Stream::Error,
                    format!("warning: an event has no JSON form: {error}"),
                ),
            }
        }
        self.view.event(event);
        if matches!(event, Event::Started { .. }) {
            self.started.store(true, Ordering::Relaxed);
        }
    }
}

/// The first Ctrl-C or SIGTERM asks a run to stop after a checkpoint; the second ends the process, as does the
/// first before the run has begun. The arithmetic has threads of its own, so this one always gets its turn.
fn listen_for_signals(cancel: Arc<AtomicBool>, started: Arc<AtomicBool>) {
    let listen = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let Ok(runtime) = runtime else { return };
        runtime.block_on(async {
            let Ok(mut signals) = Signals::new() else {
                return;
            };
            while signals.next().await.is_some() {
                if cancel.swap(true, Ordering::Relaxed) || !started.load(Ordering::Relaxed) {
                    std::process::exit(exit::INTERRUPTED.into());
                }
                let text = "\nstopping after this step, with a checkpoint (again: at once)";
                output::line(Stream::Error, text);
            }
        });
    };
    // Without the thread Ctrl-C ends the process as it would any other; the last checkpoint still holds.
    let _ = std::thread::Builder::new()
        .name("signals".into())
        .spawn(listen);
}

/// The signals that ask to stop. Made once: a signal between two of these would be lost.
#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let (interrupt, terminate) = (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        );
        Ok(Signals {
            interrupt,
            terminate,
        })
    }

    async fn next(&mut self) -> Option<()> {
        // Whichever comes first, polled by hand: tokio's `select!` would need its macros.
        std::future::poll_fn(|context| {
            let ready = self.interrupt.poll_recv(context).is_ready()
                || self.terminate.poll_recv(context).is_ready();
            if ready {
                std::task::Poll::Ready(Some(()))
            } else {
                std::task::Poll::Pending
            }
        })
        .await
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Signals)
    }

    async fn next(&mut self) -> Option<()> {
        tokio::signal::ctrl_c().await.ok()
    }
}
