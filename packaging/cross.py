"""Compilers for other machines than this one, and packages made with them.

The Rust compiler is Debian's rustc-web, which has a standard library for 64-bit Arm. It is unpacked
below the target directory, not installed: it would drive out rustup's and Debian's rustc. Its version
has to be at least the workspace's rust-version. For 32-bit Arm there is no standard library of that
version, so it is compiled from the compiler's own sources, with a flag that only an unstable
compiler takes (packaging/build sets it).
"""

import os

from debian import ROOT, TARGET, WORK, install, newest, run, step, unpack

# Debian's architecture: Rust's target, and the prefix of its C compiler.
TARGETS = {
    "arm64": ("aarch64-unknown-linux-gnu", "aarch64-linux-gnu"),
    "armhf": ("armv7-unknown-linux-gnueabihf", "arm-linux-gnueabihf"),
}
PACKAGES = ["broker", "provider-agent", "meter-agent", "gateway-admin"]


def environment(architecture):
    """The environment in which packaging/build, and cargo by `cargo`, compile for an architecture."""
    target, tools = TARGETS[architecture]
    install(f"gcc-{tools}", f"libc6-dev-{architecture}-cross", "gcc", "binutils", "dpkg-dev")
    stamp = WORK / f"{architecture}.compiler"
    if not stamp.exists():
        library = newest("libstd-rust-web-dev", "libstd-rust-web-")
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(f"{library} {newest(library, 'libllvm')}")
    own = "libstd-rust-web-dev:arm64" if architecture == "arm64" else "rust-web-src"
    rust = unpack(f"rust-{architecture}",
                  ["rustc-web", *stamp.read_text().split(), "libstd-rust-web-dev", own])
    variable = target.replace("-", "_")
    found = dict(
        os.environ, RUSTC_WRAPPER="", CROSS_RUSTC=str(rust / "usr/bin/rustc"),
        CROSS_LIBRARIES=str(rust / "usr/lib/x86_64-linux-gnu"),
        **{f"CARGO_TARGET_{variable.upper()}_LINKER": f"{tools}-gcc", f"CC_{variable}": f"{tools}-gcc"})
    if architecture == "armhf":
        found["CROSS_STD"] = "std,panic_abort"
    return found


def cargo(architecture, *words):
    """Runs cargo with the compiler for an architecture; returns the directory of its target."""
    target = TARGETS[architecture][0]
    variables = environment(architecture)
    run("cargo", *words, "--locked", "--target", target, cwd=ROOT, timeout=3600,
        env=dict(variables, RUSTC=variables["CROSS_RUSTC"],
                 LD_LIBRARY_PATH=variables["CROSS_LIBRARIES"]))
    return TARGET / target


def pack(architecture, packages=()):
    """Packs programs, all by default; returns the paths of the packages."""
    packages = packages or PACKAGES
    variables = environment(architecture)
    step(f"pack {', '.join(packages)} for {architecture}")
    only = [word for package in packages for word in ("--only", package)]
    run(ROOT / "packaging/build", "--target", TARGETS[architecture][0], *only, cwd=ROOT,
        env=variables, timeout=3600)
    made = ROOT / "target/debian"
    return [next(made.glob(f"dcnet-{name}_*_{architecture}.deb")) for name in packages]
