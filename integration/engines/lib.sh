# What every set of scenarios stands on. Sourced by a set; runs in the lab, or on any machine that may
# be spoilt. R is the runtime that a check is about: the sets write "$R" where an engine wants one.
#
#   check NAME EXPECTED SCRIPT   SCRIPT's output is EXPECTED; a status other than 0 is added as "[7]"
#   waits COMMAND... -- check …  only where isorun has these commands; else pending
#   full check …                 only in the full part
#   patient check …              five minutes instead of a minute and a half
#
# FULL=1       the full part, not only the quick one
# COMPARE=1    runs every check on runc too, and says where it differs: a check that runc does not pass
#              may be a wrong check
# ONLY=REGEX   only the checks whose name it matches
# SLOW=N       time limits times N
# shellcheck shell=bash

set -u
export LC_ALL=C SHELL=/bin/sh
engines=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# fatal WHY: the set cannot go on.
fatal() {
	echo "engines/${0##*/}: $*"
	exit 1
}
# The lab sets LAB, engines/run --here SPOIL: nobody's engines are changed by mistake.
[ -n "${LAB:-}${SPOIL:-}" ] || fatal "changes this machine's engines: run it by engines/run, in the lab or with --here"
isorun=${ISORUN:-/usr/local/bin/isorun}
reference=${REFERENCE:-/usr/sbin/runc}
work=$(mktemp -d /tmp/isorun-engines.XXXXXX)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
passed=0 failed=0 skipped=0
commands=$("$isorun" --help | sed -n '/^Commands:/,/^$/s/^ *\([a-z][a-z-]*\) .*/\1/p')
facts=$("$isorun" features)

# has NAME...: whether isorun has these commands, or what the features say about cgroups ("systemd").
has() {
	local name
	for name; do
		case $name in
		systemd) jq -e .linux.cgroup.systemd <<<"$facts" >/dev/null || return 1 ;;
		*) grep -qx "$name" <<<"$commands" || return 1 ;;
		esac
	done
}

# needs COMMAND PACKAGE: the engine, or one sentence.
needs() { command -v "$1" >/dev/null || fatal "$1 is not installed: apt install $2"; }
# came_up UNIT WHEN COMMAND...: starts or restarts the daemon and waits until COMMAND works; or says why not.
# A start under emulation may take a minute.
came_up() {
	local unit=$1 when=$2
	shift 2
	systemctl reset-failed "$unit" 2>/dev/null
	timeout $((240 * ${SLOW:-1})) systemctl restart "$unit" && until_true 60 "$@" && return
	echo "engines/${0##*/}: $unit does not come up $when; see journalctl -u $unit; it says:"
	journalctl -q -n 10 --no-pager -u "$unit"
	exit 1
}

say_skipped() {
	skipped=$((skipped + 1))
	echo "skipped: $1: $2"
}

# seen SCRIPT: what it prints, and its status where that is not 0. It may take a minute and a half, or as
# many seconds as "limit" says.
seen() {
	local text code=0
	text=$(
		set +e
		R=$R timeout --kill-after 5 $((${limit:-90} * ${SLOW:-1})) bash -c '
			. "$1"; eval "$2"' bash "$work/functions" "$1" </dev/null 2>"$work/stderr"
	) || code=$?
	[ $code -eq 0 ] || text+="${text:+ }[$code]"
	printf %s "$text"
}

check() {
	local name=$1 expected=$2 script=$3 got other
	[[ $name =~ ${ONLY:-} ]] || return 0
	declare -f >"$work/functions"
	declare -p engines isorun reference work i manager w place user 2>/dev/null >>"$work/functions"
	R=$isorun
	got=$(seen "$script")
	if [ "$got" = "$expected" ]; then
		passed=$((passed + 1))
		echo "ok: $name"
	else
		failed=$((failed + 1))
		echo "FAILED: $name: expected '$expected', seen '${got:0:1500}'"
		{ head -n 2; tail -n 2; } <"$work/stderr" | cut -c1-700 | sed 's/^/    /'
	fi
	if [ "${COMPARE:-}" = 1 ]; then
		R=$reference
		other=$(seen "$script")
		[ "$other" = "$expected" ] || {
			echo "    runc differs: seen '$other'"
			tail -n 1 "$work/stderr" | cut -c1-300 | sed 's/^/      /'
		}
	fi
}

waits() {
	local missing=()
	while [ "$1" != -- ]; do
		has "$1" || missing+=("$1")
		shift
	done
	shift
	[ "$1" != full ] || [ "${FULL:-}" = 1 ] || return 0
	[ "$1" != full ] || shift
	if [ ${#missing[@]} -gt 0 ]; then
		say_skipped "$2" "pending: isorun has no ${missing[*]} yet"
	else
		"$@"
	fi
}

# patient check …: for what takes an emulated machine that shares its CPUs a while.
patient() { limit=300 "$@"; }
full() { [ "${FULL:-}" != 1 ] || "$@"; }

# until_true SECONDS COMMAND...: waits for it.
until_true() {
	local end=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || return 1
		sleep 0.2
	done
}

# on_tty SECONDS [PATTERN=TEXT]... -- COMMAND...
on_tty() { python3 "$engines/terminal.py" "$@"; }

# finish: the sum.
finish() {
	echo "$passed passed, $failed failed, $skipped skipped"
	[ "$failed" -eq 0 ] && [ "$((passed + skipped))${ONLY:-}" != 0 ]
}
