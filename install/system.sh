# What the system must have before anything can be built: Python and a compiler.

# ensure_system NEEDS…: sets PYTHON; NEEDS are of: compiler, libgomp. What is missing is installed as root, and named
# otherwise.
ensure_system() {
  local missing=() packages=() need
  if [[ $PYTHON_FROM == host ]]; then plan_python; fi
  obtain_python
  if [[ $PYTHON_FROM == apt && -z $PYTHON ]]; then
    missing+=("Python 3.11 or newer")
    read -ra packages <<<"$(apt_python)"
  fi
  if [[ -n $PYTHON ]] && ! is_dry_name "$PYTHON" && ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
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
  step "Installing with apt-get: ${packages[*]}" \
    env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}"
  if is_dry; then PYTHON=${PYTHON:-python3}; fi
  [[ -n $PYTHON ]] || PYTHON=$(find_python) || die "apt-get's Python does not run; name another one in PYTHON."
}

# True for a Python that a dry run only names.
is_dry_name() { is_dry && ! command -v "$1" >/dev/null; }
