# Telling people what is done, and doing it: steps with their time, their failures and the summary.
# Reads LOG, the file that commands write to, and DRY_RUN, "yes" to tell and not to do.

readonly TAIL_LINES=40
DRY_RUN=${DRY_RUN:-no}
DONE=()
NEXT=()
WARNINGS=()

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
die() {
  warn "install.sh: $*"
  exit 1
}

is_dry() { [[ $DRY_RUN == yes ]]; }

# The time since SECONDS was $1.
elapsed() {
  local seconds=$((SECONDS - $1))
  if ((seconds < 60)); then printf '%d s' "$seconds"; else printf '%d min %d s' $((seconds / 60)) $((seconds % 60)); fi
}

# step "What is done" COMMAND…: run it with its output in the log; show the time it takes; if it fails, the log's end.
step() { attempt "$@" || exit 1; }

# attempt "What is done" COMMAND…: as step, but a failure is the caller's to deal with.
attempt() {
  local label=$1 began=$SECONDS said=$SECONDS pid code=0 pauses=(0.01 0.02 0.05 0.1 0.2 0.5)
  shift
  if is_dry; then
    say "· $label"
    # A function's name would tell nobody anything.
    [[ $(type -t "$1") == function ]] || say "      $(printf '%q ' "$@")"
    return
  fi
  printf '\n=== %s\n' "$label" >>"$LOG"
  # A process group of its own, so that Ctrl-C, or a connection that breaks, ends the compilers as well.
  set -m
  "$@" >>"$LOG" 2>&1 </dev/null &
  pid=$!
  set +m
  trap 'kill -- "-$pid" 2>/dev/null; warn ""; exit 130' INT TERM HUP
  while kill -0 "$pid" 2>/dev/null; do
    if [[ -t 1 ]]; then
      printf '\r\033[K… %s (%s) %.60s' "$label" "$(elapsed "$began")" "$(phase)"
    elif ((SECONDS - said >= 30)); then
      said=$SECONDS
      say "… $label ($(elapsed "$began")) $(phase)"
    fi
    sleep "${pauses[0]}"
    ((${#pauses[@]} == 1)) || pauses=("${pauses[@]:1}")
  done
  wait "$pid" || code=$?
  trap - INT TERM HUP
  [[ ! -t 1 ]] || printf '\r\033[K'
  if ((code != 0)); then
    warn "✗ $label failed after $(elapsed "$began"). The end of $LOG:"
    # Of this step alone: sed keeps what follows the last heading.
    sed -n '/^=== /h; //!H; ${x;p}' "$LOG" | tail -n "$TAIL_LINES" >&2
    return 1
  fi
  say "✓ $label ($(elapsed "$began"))"
}

# What pip does at the moment, from the log.
phase() {
  tail -n 5 "$LOG" | tr -d '\r' \
    | sed -nE 's/^ *((Collecting|Downloading|Building|Installing|Preparing) [^ ]+( [a-z]+)?( [^ ]+)?).*/· \1/p' \
    | tail -n 1
}

# kept "What is so": tell that there was nothing to do.
kept() { say "= $*"; }

# For the summary at the end: what was done, what to do next, and what is not as it could be.
note_done() { DONE+=("$*"); }
note_next() { NEXT+=("$*"); }
note_warning() {
  WARNINGS+=("$*")
  warn "! $*"
}

summarize() {
  local line
  say ""
  if is_dry; then
    say "Nothing was changed: this was a dry run."
    return
  fi
  say "Done:"
  if ((${#DONE[@]} == 0)); then say "  nothing; everything was as it should be."; fi
  for line in "${DONE[@]}"; do say "  $line"; done
  if ((${#WARNINGS[@]} > 0)); then
    say "Note:"
    for line in "${WARNINGS[@]}"; do say "  $line"; done
  fi
  if ((${#NEXT[@]} > 0)); then
    say "Next:"
    for line in "${NEXT[@]}"; do say "  $line"; done
  fi
}
