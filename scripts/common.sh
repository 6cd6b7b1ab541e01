# What scripts/run, scripts/test and scripts/check share: the virtual environment, JsSIP, Debian packages. Sourced, not run.

say() { printf 'wsgate: %s\n' "$*" >&2; }

# packages_missing NAME...: the Debian packages among these that are not installed.
packages_missing() {
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || printf '%s ' "$package"
    done
}

# need_packages WHAT NAME...: install what is missing when root; else name it with the command that brings it, and fail.
need_packages() {
    what=$1
    shift
    missing=$(packages_missing "$@")
    [ -n "$missing" ] || return 0
    if ! command -v apt-get >/dev/null; then
        say "$what needs these Debian packages (or their like elsewhere): $missing"
        return 1
    fi
    if [ "$(id -u)" != 0 ]; then
        say "$what needs packages that are not installed. This brings them: sudo apt-get install --no-install-recommends $missing"
        return 1
    fi
    say "installing $missing"
    install_quietly $missing
}

# install_quietly NAME...: apt-get install without starting any service: while a policy-rc.d forbids it, Debian starts none.
install_quietly() {
    policy=/usr/sbin/policy-rc.d
    ours=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' > "$policy"
        chmod 755 "$policy"
        ours=yes
    fi
    done_well=0
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q && apt-get install -q -y --no-install-recommends "$@" || done_well=1
    if [ -n "$ours" ]; then rm -f "$policy"; fi
    return $done_well
} >&2

# use_python EXTRA: a virtual environment with wsgate (editable) and its extra ('' for none); made in .venv when none is active.
use_python() {
    extra=$1
    if [ -z "${VIRTUAL_ENV:-}" ]; then
        if [ ! -x .venv/bin/python ]; then
            if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
                need_packages "wsgate" python3 python3-venv || return 1
            fi
            if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
                say "Python 3.10 or later is needed; python3 is $(python3 --version)"
                return 1
            fi
            say "making a virtual environment in .venv"
            python3 -m venv .venv || return 1
        fi
        VIRTUAL_ENV=$PWD/.venv
        PATH=$VIRTUAL_ENV/bin:$PATH
        export VIRTUAL_ENV PATH
    fi
    stamp=$VIRTUAL_ENV/.wsgate-${extra:-plain}
    wanted="$PWD $(cat setup.py pyproject.toml | cksum)"
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return 0
    say "installing wsgate into $VIRTUAL_ENV"
    python -m pip install --quiet --disable-pip-version-check -e ".${extra:+[$extra]}" || return 1
    printf '%s\n' "$wanted" > "$stamp"
}

# use_node: JsSIP as one file beside the web phone's page, and (with `dev`) the packages that tests use.
use_node() {
    kind=${1:-}
    wanted=$(cat package.json package-lock.json | cksum)
    stamp=node_modules/.wsgate-${kind:-plain}
    [ -e wsgate/phone/jssip.js ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return 0
    command -v npm >/dev/null || need_packages "JsSIP for the web phone" nodejs npm || return 1
    say "installing JsSIP with npm"
    if [ "$kind" = dev ]; then omit=; else omit=--omit=dev; fi
    npm install --no-audit --no-fund --loglevel=error $omit >&2 || return 1
    printf '%s\n' "$wanted" > "$stamp"
}
