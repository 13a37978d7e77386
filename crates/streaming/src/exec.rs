//! Exec sessions: a program's streams copied until it has ended and its output is out.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::backend::{Backend, Exec, ExecRequest, Program, ProgramEnd, Stdio};
use crate::descriptor::Descriptor;
use crate::queue::Input;
use crate::remote_command::{Channels, Sizes};
use crate::status::Outcome;
use crate::stream::{Output, PIECE_MAX_BYTES};

/// How long a child of the program that keeps the streams may stay silent after the program has ended.
const DRAIN_QUIET: Duration = Duration::from_secs(2);
/// How long it is listened to in any case. What the program itself left in the pipe is brought over for as long as the
/// client takes.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// Runs the program and tells the client how it ended.
pub(crate) async fn run(backend: Arc<dyn Backend>, request: ExecRequest, mut channels: Channels) {
    let container = request.container.clone();
    let outcome = match backend.exec(request).await {
        Ok(exec) => match carry(exec, &mut channels).await {
            Ok(0) => Outcome::Success,
            Ok(code) => Outcome::ExitCode(code),
            Err(error) => Outcome::Failure(format!("error executing command in container: {error}")),
        },
        Err(refusal) => {
            let text = telemetry::chain(&*refusal).to_string();
            tracing::warn!(container.id = container, error = text, "exec session refused");
            Outcome::Failure(format!("error executing command in container: {text}"))
        }
    };
    let _ = channels.end(&outcome).await;
}

async fn carry(exec: Exec, channels: &mut Channels) -> io::Result<i32> {
    let Exec { stdio, mut program } = exec;
    let (stdin, resize) = (channels.stdin.take(), channels.resize.take());
    let ended = watch::Sender::new(false);
    let (stdin_fd, stdout_fd, stderr_fd) = open(stdio)?;
    let ProgramEnd { code, complaint } = {
        let (sizes, size) = watch::channel(None);
        let inputs = async {
            tokio::join!(feed(stdin, stdin_fd), read_sizes(resize, sizes));
            std::future::pending::<()>().await;
        };
        let outputs = async {
            tokio::join!(
                drain(stdout_fd, channels.stdout.as_ref(), ended.subscribe()),
                drain(stderr_fd, channels.stderr.as_ref(), ended.subscribe()),
            );
        };
        let life = async {
            let end = watch_over(&mut *program, size).await;
            ended.send_replace(true);
            end
        };
        tokio::select! {
            (end, ()) = async { tokio::join!(life, outputs) } => end?,
            () = inputs => return Err(io::ErrorKind::Other.into()),
        }
    };
    if !complaint.is_empty()
        && let Some(output) = channels.stderr.as_ref().or(channels.stdout.as_ref())
    {
        let _ = output.write(&complaint).await;
    }
    Ok(code)
}

type Ends = (Option<Arc<Descriptor>>, Option<Arc<Descriptor>>, Option<Arc<Descriptor>>);

fn open(stdio: Stdio) -> io::Result<Ends> {
    match stdio {
        Stdio::Terminal(master) => {
            let master = Arc::new(Descriptor::new(master, Interest::READABLE | Interest::WRITABLE)?);
            Ok((Some(Arc::clone(&master)), Some(master), None))
        }
        Stdio::Pipes { stdin, stdout, stderr } => {
            let open = |fd: Option<_>, interest| fd.map(|fd| Descriptor::new(fd, interest).map(Arc::new)).transpose();
            Ok((open(stdin, Interest::WRITABLE)?, open(stdout, Interest::READABLE)?, open(stderr, Interest::READABLE)?))
        }
    }
}

/// Waits for the program's end, and passes on the sizes of the client's terminal meanwhile.
async fn watch_over(
    program: &mut dyn Program,
    mut size: watch::Receiver<Option<(u16, u16)>>,
) -> io::Result<ProgramEnd> {
    loop {
        let change = tokio::select! {
            end = program.wait() => return end,
            change = size.changed() => change,
        };
        let Ok(()) = change else { return program.wait().await };
        let now = *size.borrow_and_update();
        if let Some((width, height)) = now
            && let Err(error) = program.resize(width, height)
        {
            tracing::debug!(%error, "resizing a terminal failed");
        }
    }
}

async fn read_sizes(resize: Option<Input>, sizes: watch::Sender<Option<(u16, u16)>>) {
    let Some(mut resize) = resize else { return };
    let mut reader = Sizes::default();
    while let Some(piece) = resize.next().await {
        match reader.add(&piece) {
            Ok(Some(size)) => {
                sizes.send_replace(Some(size));
            }
            Ok(None) => {}
            Err(error) => return tracing::debug!(%error, "the client's sizes are no JSON, no more are read"),
        }
    }
}

/// Copies the client's input; the program sees its end. A terminal has no such end: it is closed with the session.
async fn feed(stdin: Option<Input>, descriptor: Option<Arc<Descriptor>>) {
    let (Some(mut stdin), Some(descriptor)) = (stdin, descriptor) else { return };
    while let Some(piece) = stdin.next().await {
        if descriptor.write(&piece).await.is_err() {
            return;
        }
    }
}

/// Copies the program's output until it ends, or until the program has ended and its children are silent or out of time.
async fn drain(descriptor: Option<Arc<Descriptor>>, output: Option<&Output>, ended: watch::Receiver<bool>) {
    let Some(descriptor) = descriptor else { return };
    let mut buffer = vec![0; PIECE_MAX_BYTES];
    let mut rest = Rest { ended, after: None };
    loop {
        let read = tokio::select! {
            biased;
            read = descriptor.read(&mut buffer) => read,
            () = rest.is_over(&descriptor) => return,
        };
        let Ok(count @ 1..) = read else { return };
        // A terminal that nobody watches is read all the same, or its program would stop.
        if let Some(output) = output
            && output.write(buffer.get(..count).unwrap_or_default()).await.is_err()
        {
            return;
        }
        if !rest.may_follow(&descriptor, count) {
            return;
        }
    }
}

/// What may still come once the program has ended.
struct Rest {
    ended: watch::Receiver<bool>,
    /// Until when there may be more, and how many bytes of the program's own are not read yet.
    after: Option<(Instant, u64)>,
}

impl Rest {
    /// Returns when the program has ended and nothing has come for a while.
    async fn is_over(&mut self, descriptor: &Descriptor) {
        if self.ended.wait_for(|is_ended| *is_ended).await.is_ok() {
            self.begin(descriptor);
            tokio::time::sleep(DRAIN_QUIET).await;
        }
    }

    fn begin(&mut self, descriptor: &Descriptor) -> &mut (Instant, u64) {
        self.after.get_or_insert_with(|| {
            let left = rustix::io::ioctl_fionread(descriptor.fd()).unwrap_or(0);
            (Instant::now() + DRAIN_LIMIT, left)
        })
    }

    /// Whether there may be more after `count` bytes were read.
    fn may_follow(&mut self, descriptor: &Descriptor, count: usize) -> bool {
        if !*self.ended.borrow() {
            return true;
        }
        // What the first look finds is what is left after this reading.
        let counted = if self.after.is_some() { u64::try_from(count).unwrap_or(u64::MAX) } else { 0 };
        let (until, left) = self.begin(descriptor);
        *left = left.saturating_sub(counted);
        *left > 0 || Instant::now() < *until
    }
}
