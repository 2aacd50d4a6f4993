//! `isorun-hook-channel`: an OCI hook by which containers of any runtime join tensor channels.

fn main() -> std::process::ExitCode {
    isorun::engine::channel_hook::main()
}
