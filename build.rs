//! Has the release binary linked in the order of link/order.ld, what every container needs in one place, and by
//! link/unwind.ld without what only unwinding would read.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=link/order.ld");
    println!("cargo:rerun-if-changed=link/unwind.ld");
    let var = |name| std::env::var(name).unwrap_or_default();
    // Debug builds are linked often, and nobody measures them.
    if var("PROFILE") == "release" {
        let directory = format!("{}/link", var("CARGO_MANIFEST_DIR"));
        for argument in [
            format!("-T,{directory}/order.ld"),
            format!("-T,{directory}/unwind.ld"),
            "--no-eh-frame-hdr".to_string(),
        ] {
            println!("cargo:rustc-link-arg-bin=isorun=-Wl,{argument}");
        }
    }
}
