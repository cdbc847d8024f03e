//! The control socket: how commands reach a pool while a server has it.
//!
//! A server listens on a unix socket beside its pool ([`place`]). A command that finds its pool
//! taken connects there ([`client`]) and sends itself, as it was parsed; the server ([`server`])
//! carries it out by the same code as the command would, in a thread, with a session
//! ([`remote`]) whose other half is the terminal of the command. What passes between them are
//! packets ([`packet`]), one message each ([`message`]).
//!
//! Files are opened by the command, with the rights and the working directory of whoever gave it,
//! and sent as descriptors; a server opens nothing for anybody. It asks for "the file that the
//! command names", and cannot name one.
//!
//! Whoever can connect can do whatever the commands do, so only the server's own user can. Even
//! so, what comes in is bounded: connections, the length of a packet, the time until a command is
//! known; a client that does not read is given up, and one that leaves ends its command at the
//! next step.

pub(crate) mod client;
pub(crate) mod message;
pub(crate) mod packet;
pub(crate) mod place;
pub(crate) mod remote;
pub(crate) mod server;
