# What the system must have before anything can be built: Python and a compiler.

readonly OLDEST_PYTHON='(3, 11)'

# yes: a Python below a home folder will not do, because services do not see those.
SYSTEM_PYTHON=no

is_recent_python() { "$1" -c "import sys; sys.exit(sys.version_info < $OLDEST_PYTHON)" 2>/dev/null; }

is_visible_python() {
  [[ $SYSTEM_PYTHON == no ]] \
    || "$1" -c 'import sys; sys.exit(sys.base_prefix.startswith(("/home/", "/root/")))' 2>/dev/null
}

find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
    if command -v "$candidate" >/dev/null && is_recent_python "$candidate" && is_visible_python "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

# The newest of apt's Pythons that is recent enough, as package names. Where the system's own Python is older (JetPack 6
# has 3.10), the distribution may have another beside it.
apt_python() {
  local version
  for version in 3.13 3.12 3.11; do
    if apt-cache show "python$version-venv" >/dev/null 2>&1; then
      printf 'python%s python%s-venv' "$version" "$version"
      return
    fi
  done
  printf 'python3 python3-venv'
}

# ensure_system NEEDS…: sets PYTHON; NEEDS are of: compiler, libgomp. What is missing is installed as root, and named
# otherwise.
ensure_system() {
  local missing=() packages=() need
  if [[ -n ${PYTHON:-} ]]; then
    is_recent_python "$PYTHON" || die "PYTHON=$PYTHON is not a Python of 3.11 or newer."
    is_visible_python "$PYTHON" || die "PYTHON=$PYTHON lies in a home folder, which services do not see."
  elif ! PYTHON=$(find_python); then
    missing+=("Python 3.11 or newer")
    read -ra packages <<<"$(apt_python)"
  fi
  if [[ -n $PYTHON ]] && ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
    missing+=("Python's venv module")
    packages+=("$("$PYTHON" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')")
  fi
  for need in "$@"; do
    case $need in
      compiler)
        # llama.cpp is compiled here. CMake and Ninja come from PyPI where the system has none.
        if ! command -v c++ >/dev/null || ! command -v cc >/dev/null; then
          missing+=("a C and C++ compiler")
          packages+=(build-essential)
        fi
        ;;
      libgomp)
        # A llama.cpp that was compiled elsewhere still wants OpenMP's library.
        if ! PATH="$PATH:/sbin:/usr/sbin" ldconfig -p | grep -q 'libgomp\.so\.1'; then
          missing+=("OpenMP's library libgomp")
          packages+=(libgomp1)
        fi
        ;;
    esac
  done
  if ((${#packages[@]} == 0)); then return; fi

  printf 'Missing: %s.\n' "${missing[@]}"
  if ! command -v apt-get >/dev/null || { [[ $EUID -ne 0 ]] && ! is_dry; }; then
    die "install it first. On Debian or Ubuntu: sudo apt-get install ${packages[*]}"
  fi
  step "Refreshing apt's package lists" apt-get update
  [[ -n $PYTHON ]] || read -ra packages <<<"$(apt_python) ${packages[*]:2}"
  step "Installing with apt-get: ${packages[*]}" \
    env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}"
  if is_dry; then PYTHON=${PYTHON:-python3}; fi
  [[ -n $PYTHON ]] || PYTHON=$(find_python) || die "apt-get's Python is older than 3.11; name a newer one in PYTHON."
}
