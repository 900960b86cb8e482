# Sourced by the scripts beside it: what a machine needs before it can build, run or test Dodo.
# On Debian and its kin missing packages are installed; elsewhere they are named. No server that
# runs already is touched, and none is started: Dodo runs private ones.

# One line to the user.
say() {
    printf 'dodo: %s\n' "$*" >&2
}

die() {
    say "$*"
    exit 1
}

# Finds cargo, also where rustup puts it before the next login.
need_cargo() {
    if ! command -v cargo >/dev/null && [[ -x ${HOME:-/root}/.cargo/bin/cargo ]]; then
        export PATH="${HOME:-/root}/.cargo/bin:$PATH"
    fi
    command -v cargo >/dev/null ||
        die "cargo is missing: install Rust from https://rustup.rs (curl https://sh.rustup.rs -sSf | sh -s -- -y)"
}

# rustfmt and clippy are components of their own.
need_lints() {
    if ! { cargo fmt --version && cargo clippy --version; } >/dev/null 2>&1; then
        die "rustfmt or clippy is missing: rustup component add rustfmt clippy"
    fi
}

# Debian packages that are missing to build and run; a program from elsewhere will do too.
missing_to_run() {
    command -v cc >/dev/null || echo gcc libc6-dev
    # To build ISA-L, which packs the pages.
    command -v make >/dev/null || echo make
    command -v autoreconf >/dev/null || echo autoconf
    command -v automake >/dev/null || echo automake
    command -v libtoolize >/dev/null || echo libtool
    [[ $(uname -m) != x86_64 ]] || command -v nasm >/dev/null || echo nasm
    command -v redis-server >/dev/null || command -v valkey-server >/dev/null || echo redis-server
    command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || echo postgresql
}

# The same to test. Manuals serve as sites of real pages.
missing_to_test() {
    missing_to_run
    command -v nginx >/dev/null || [[ -x /usr/sbin/nginx ]] || echo nginx
    command -v zstd >/dev/null || echo zstd
    command -v python3 >/dev/null || echo python3
    python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    compgen -G '/usr/share/doc/postgresql-doc-*/html/index.html' >/dev/null || echo postgresql-doc
    [[ -e /usr/share/doc/git-doc/index.html ]] || echo git-doc
    [[ -e /usr/share/doc/sqlite3/index.html ]] || echo sqlite3-doc
}

# need_packages run|test: installs what is missing, or says what to install.
need_packages() {
    local missing
    missing=$("missing_to_$1" | xargs)
    [[ -n $missing ]] || return 0
    command -v apt-get >/dev/null || die "please install (names as in Debian): $missing"
    local -a as_root=()
    if ((EUID != 0)); then
        # A password can be asked for at a terminal only.
        if ! command -v sudo >/dev/null || { ! sudo -n true 2>/dev/null && [[ ! -t 0 ]]; }; then
            die "please install as root: apt-get install --no-install-recommends $missing"
        fi
        as_root=(sudo)
    fi
    say "installing $missing"
    # shellcheck disable=SC2086 # One word each.
    install_packages $missing
    missing=$("missing_to_$1" | xargs)
    [[ -z $missing ]] || die "still missing after the installation: $missing"
}

# Installs packages with `as_root` before each command. In a subshell, whose trap is its own.
install_packages() (
    policy=/usr/sbin/policy-rc.d
    log=$(mktemp)
    ours=
    clean_up() {
        rm -f "$log"
        [[ -z $ours ]] || "${as_root[@]}" rm -f "$policy"
    }
    trap clean_up EXIT
    trap 'exit 130' INT TERM
    # Exit 101 of this file forbids packages to start, stop or restart servers (Debian's
    # invoke-rc.d(8)). One that exists is the administrator's.
    if [[ ! -e $policy ]]; then
        ours=yes
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
        "${as_root[@]}" chmod 755 "$policy"
    fi
    apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get -y -q)
    # Slim images leave documentation out; ours is test data.
    include=()
    for path in postgresql-doc-'*' git-doc/'*' sqlite3/'*'; do
        include+=(-o "Dpkg::Options::=--path-include=/usr/share/doc/$path")
    done
    # A source that cannot be refreshed need not be the one the packages come from.
    "${apt[@]}" update >"$log" 2>&1 || true
    if ! "${apt[@]}" install --no-install-recommends "${include[@]}" "$@" >>"$log" 2>&1; then
        tail -n 5 "$log" >&2
        die "the installation failed; please install: $*"
    fi
)

# Makes `target_dir` the absolute directory of the build, as cargo is run in another one.
find_target_dir() {
    target_dir=${CARGO_TARGET_DIR:-$1/target}
    [[ $target_dir == /* ]] || target_dir=$PWD/$target_dir
    export CARGO_TARGET_DIR=$target_dir
}

# build_release DIR: the programs as they are shipped. To optimise each as a whole takes up to 4 GB: one after the other where there is little.
build_release() {
    local free jobs=()
    free=$(awk '/^MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo 2>/dev/null) || free=
    if [[ -n $free ]] && ((free < 9)); then
        jobs=(--jobs 1)
    fi
    (cd "$1" && cargo build --release --workspace --bins --quiet ${jobs[@]+"${jobs[@]}"})
}

# make_venv DIR: a Python there with what others wrote and we are tested with: readers of WARC, CDXJ, columns and zstd,
# clients of Postgres and Redis, a mail server. Sets DODO_TEST_PYTHON.
make_venv() {
    local modules='import warcio, cdxj_indexer, duckdb, aiosmtpd, zstandard, pg8000, redis'
    if ! "$1/bin/python" -c "$modules" 2>/dev/null; then
        python3 -m venv --clear "$1"
        "$1/bin/python" -m pip install --quiet --disable-pip-version-check \
            warcio cdxj-indexer duckdb aiosmtpd zstandard pg8000 redis
        "$1/bin/python" -c "$modules" || die "the Python checkers in $1 do not load"
    fi
    export DODO_TEST_PYTHON=$1/bin/python
}
