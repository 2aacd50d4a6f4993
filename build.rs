//! Has the release binary linked in the order of link/order.ld: what every container needs in one place.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=link/order.ld");
    let var = |name| std::env::var(name).unwrap_or_default();
    // Debug builds are linked often, and nobody measures them.
    if var("PROFILE") == "release" {
        let script = format!("{}/link/order.ld", var("CARGO_MANIFEST_DIR"));
        println!("cargo:rustc-link-arg-bin=isorun=-Wl,-T,{script}");
    }
}
