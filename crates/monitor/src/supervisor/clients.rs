//! Attached clients, and the way from them to standard input.

use std::os::fd::AsFd;

use rustix::event::epoll;

use super::{CLIENTS, Kernel, STDIN, Supervisor};
use crate::attach::{CLIENTS_MAX, Input, Received};
use crate::stdin::{Progress, Stdin};

impl Supervisor {
    pub(super) fn accept_client(&mut self, kernel: &Kernel) {
        let Some(attach) = &mut self.attach else { return };
        match attach.accept() {
            Ok(Some(place)) => self.arm_client(kernel, place),
            Ok(None) => {}
            Err(error) => self.reporter.warn("accept an attach client", &error),
        }
    }

    /// One event, then the client is silent until it is armed again: so nothing is read from it while the container does not
    /// read, and one that hung up cannot keep the loop busy.
    pub(super) fn arm_client(&mut self, kernel: &Kernel, place: usize) {
        if self.stdin.as_ref().is_some_and(Stdin::is_blocked) {
            return;
        }
        let Some(attach) = &mut self.attach else { return };
        let Some((fd, input)) = attach.client(place) else { return };
        let flags = match input {
            Input::Unused | Input::Used => epoll::EventFlags::IN | epoll::EventFlags::ONESHOT,
            Input::Ended => epoll::EventFlags::ONESHOT,
        };
        if let Err(error) = kernel.arm(fd, CLIENTS + place as u64, flags) {
            self.reporter.warn("watch an attach client", &error);
            attach.drop_client(place);
        }
    }

    pub(super) fn serve_client(&mut self, kernel: &Kernel, place: usize) {
        let Some(attach) = &mut self.attach else { return };
        match attach.client(place) {
            None => return,
            // Only its hanging up is reported any more.
            Some((_, Input::Ended)) => {
                attach.drop_client(place);
                return;
            }
            Some((_, Input::Unused | Input::Used)) => {}
        }
        let received = match &mut self.stdin {
            Some(stdin) if stdin.is_blocked() => return,
            Some(stdin) => attach.receive(place, stdin.packet()),
            // Nobody wants it, but the client must not be kept waiting.
            None => attach.receive(place, &mut self.buffer[..]),
        };
        // The first client that wrote and leaves takes standard input with it, others notwithstanding, as conmon has it and
        // as Kubernetes documents stdinOnce. One that only watched does so only if it is the last.
        let is_last = attach.clients().all(|(_, _, input)| input == Input::Ended);
        let progress = match (received, &mut self.stdin) {
            (Received::Bytes(length), Some(stdin)) => stdin.accept(length),
            (Received::End(before), Some(stdin)) if before == Input::Used || is_last => stdin.end(),
            (Received::Bytes(_) | Received::Nothing | Received::End(_), _) => Progress::Idle,
        };
        self.arm_client(kernel, place);
        self.after_stdin(kernel, progress);
    }

    pub(super) fn continue_stdin(&mut self, kernel: &Kernel) {
        let Some(stdin) = &mut self.stdin else { return };
        let progress = stdin.write();
        self.after_stdin(kernel, progress);
        if progress == Progress::Blocked {
            return;
        }
        for place in 0..CLIENTS_MAX {
            self.arm_client(kernel, place);
        }
    }

    pub(super) fn after_stdin(&mut self, kernel: &Kernel, progress: Progress) {
        match (progress, &self.stdin) {
            (Progress::Blocked, Some(stdin)) => {
                if let Err(error) =
                    kernel.arm(stdin.as_fd(), STDIN, epoll::EventFlags::OUT | epoll::EventFlags::ONESHOT)
                {
                    self.reporter.error("watch standard input", &error);
                }
            }
            (Progress::Finished, Some(stdin)) => {
                kernel.remove(stdin.as_fd());
                self.stdin = None;
            }
            (Progress::Idle | Progress::Blocked | Progress::Finished, _) => {}
        }
    }
}
