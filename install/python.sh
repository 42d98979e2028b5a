# Which Python moe2 runs with: one of the host's, or one that is got for it. JetPack 5 (Ubuntu 20.04) has 3.8, JetPack 6
# (22.04) has 3.10 and a release candidate of 3.11; both are too old for what moe2 needs.
#
# What can be had is found out before anything is changed, in this order: PYTHON, one that came with --wheels (they were
# built for it), one that was got before, the host's own, apt's, and CPython as uv manages it
# (github.com/astral-sh/python-build-standalone; glibc 2.17 is enough).

readonly OLDEST_PYTHON='(3, 11)'
# What uv is asked for.
readonly MANAGED_PYTHON=3.12
readonly PYTHON_HOME=${MOE2_INSTALL_ROOT:-}/opt/moe2/python
readonly PYTHON_DOWNLOADS=https://github.com/astral-sh/python-build-standalone/releases

# yes: a Python below a home folder will not do, because services do not see those.
SYSTEM_PYTHON=no
# Where PYTHON comes from: host, wheels, apt or uv; and for wheels which file or folder.
PYTHON_FROM=host
PYTHON_PLACE=''

# A release candidate is none: it was never meant to be kept.
is_recent_python() {
  "$1" -c "import sys; v = sys.version_info; sys.exit(v < $OLDEST_PYTHON or v.releaselevel != 'final')" 2>/dev/null
}

is_visible_python() {
  [[ $SYSTEM_PYTHON == no ]] \
    || "$1" -c 'import sys; sys.exit(sys.base_prefix.startswith(("/home/", "/root/")))' 2>/dev/null
}

# The system's own comes before another one of PATH, if it has its venv module: distributions build theirs with what a
# profile of its use tells, pyenv by default does not, and moe2 then takes a seventh more processor time (decision 0042).
find_python() {
  local candidate system=${MOE2_INSTALL_ROOT:-}/usr/bin/python3
  local candidates=(python3 python3.14 python3.13 python3.12 python3.11 "$system")
  if "$system" -c 'import ensurepip, venv' 2>/dev/null; then candidates=("$system" "${candidates[@]}"); fi
  for candidate in "$PYTHON_HOME"/*/bin/python3 "${candidates[@]}"; do
    if command -v "$candidate" >/dev/null && is_recent_python "$candidate" && is_visible_python "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

# plan_python: sets PYTHON, or PYTHON_FROM where one is to be got. Ends the script where none can be had. Changes nothing
# but apt's lists, where there are none.
plan_python() {
  if [[ -n ${PYTHON:-} ]]; then
    is_recent_python "$PYTHON" || die "PYTHON=$PYTHON is not a released Python of 3.11 or newer."
    is_visible_python "$PYTHON" || die "PYTHON=$PYTHON lies in a home folder, which services do not see."
    return
  fi
  if [[ -n ${WHEELS:-} ]] && PYTHON_PLACE=$(python_in_wheels); then
    PYTHON=$(brought_python)/bin/python3
    if is_recent_python "$PYTHON"; then return; fi
    PYTHON='' PYTHON_FROM=wheels
    check_brought_python
    say "Python: taken from $PYTHON_PLACE."
    return
  fi
  if PYTHON=$(find_python); then return; fi
  PYTHON=''
  if can_apt; then
    ensure_apt_lists
    if [[ -n $(apt_python) ]]; then
      PYTHON_FROM=apt
      say "Python: $(old_python); apt has $(apt_python)."
      return
    fi
  fi
  if [[ $SYSTEM_PYTHON == yes ]] && can_uv; then
    PYTHON_FROM=uv
    say "Python: $(old_python), and apt has none; CPython $MANAGED_PYTHON is fetched by uv into /opt/moe2/python, from" \
      "${UV_PYTHON_INSTALL_MIRROR:-$PYTHON_DOWNLOADS}."
    return
  fi
  die_without_python
}

# What the host has instead, for people.
old_python() {
  local version
  version=$(python3 -c 'import platform; print(platform.python_version())' 2>/dev/null) || true
  printf 'this host has %s, moe2 needs a released 3.11 or newer' "${version:-none}"
}

die_without_python() {
  local tried=''
  if [[ $SYSTEM_PYTHON == no ]]; then
    die "$(old_python), and apt has none. Get one with uv (https://docs.astral.sh/uv/): uv python install" \
      "$MANAGED_PYTHON; then: PYTHON=\"\$(uv python find $MANAGED_PYTHON)\" ./install.sh …"
  fi
  [[ -z ${WHEELS:-} ]] || tried=" $WHEELS holds none for $HOST_ARCH."
  die "$(old_python), and none can be had.$tried apt has none that is released, and uv's cannot be downloaded here." \
    "Nothing was changed. Bring one along: on a machine with internet, download" \
    "cpython-$MANAGED_PYTHON.*-$HOST_ARCH-unknown-linux-gnu-install_only.tar.gz from $PYTHON_DOWNLOADS, put it into a" \
    "folder (with the wheels, for a host without a network), and run this again with --wheels FOLDER. Or name one in" \
    "PYTHON, or a mirror in UV_PYTHON_INSTALL_MIRROR."
}

# --- One that was brought along ---------------------------------------------------------------------------------------

# python_in_wheels: the newest archive of a standalone CPython for this processor, else a folder "python" with one.
python_in_wheels() {
  local archive
  archive=$(find "$WHEELS" -maxdepth 1 -name "cpython-3.*-$HOST_ARCH-unknown-linux-gnu-install_only*.tar.gz" \
    | grep -vE '/cpython-3\.([0-9]|10)\.' | grep -vE '/cpython-3\.[0-9]+\.[0-9]+(a|b|rc)[0-9]' | sort -V | tail -n 1) || true
  if [[ -n $archive ]]; then
    printf '%s' "$archive"
  elif [[ -e $WHEELS/python/bin/python3 ]]; then
    printf '%s' "$WHEELS/python"
  else
    return 1
  fi
}

# The folder that PYTHON_PLACE is put into.
brought_python() {
  local name=${PYTHON_PLACE##*/}
  printf '%s/%s' "$PYTHON_HOME" "${name%.tar.gz}"
}

# What was brought must be whole, and a folder must run here, before anything depends on it.
check_brought_python() {
  if [[ -d $PYTHON_PLACE ]]; then
    is_recent_python "$PYTHON_PLACE/bin/python3" \
      || die "$PYTHON_PLACE/bin/python3 does not run here as a released Python of 3.11 or newer. Nothing was changed."
  else
    tar -tzf "$PYTHON_PLACE" python/bin/python3 >/dev/null 2>&1 \
      || die "$PYTHON_PLACE is damaged, or no archive of a standalone CPython (install_only). Nothing was changed."
  fi
}

# take_python TARGET: complete or not at all, and only one that runs here. (A step's function is not ended by set -e.)
take_python() {
  local new=$PYTHON_HOME/.new
  rm -rf "$new"
  install -d -m 0755 "$new" || return
  if [[ -d $PYTHON_PLACE ]]; then
    cp -R "$PYTHON_PLACE" "$new/python" || return
  else
    tar -xzf "$PYTHON_PLACE" --no-same-owner -C "$new" || return
  fi
  chmod -R go+rX "$new/python" || return
  if ! is_recent_python "$new/python/bin/python3"; then
    "$new/python/bin/python3" --version || true
    say "It does not run here as a released Python of 3.11 or newer."
    rm -rf "$new"
    return 1
  fi
  rm -rf "$1"
  mv "$new/python" "$1" && rm -rf "$new"
}

# --- apt's ------------------------------------------------------------------------------------------------------------

can_apt() { command -v apt-get >/dev/null && command -v apt-cache >/dev/null && { [[ $EUID -eq 0 ]] || is_dry; }; }

# Without lists apt knows no package. A dry run leaves them as they are.
ensure_apt_lists() {
  if [[ -n $(apt_candidate python3) ]] || is_dry; then return; fi
  attempt "Refreshing apt's package lists" apt-get update || true
}

# apt_candidate PACKAGE: the version that apt would install; nothing if there is none.
apt_candidate() {
  LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -nE 's/^ *Candidate: ([^ (]+).*/\1/p' | head -n 1
}

# The newest of apt's Pythons that is recent enough, as package names; nothing if there is none.
apt_python() {
  local version found
  for version in 3.14 3.13 3.12 3.11; do
    found=$(apt_candidate "python$version-venv")
    if [[ -n $found && ! $found =~ ~(a|b|rc)[0-9] ]]; then
      printf 'python%s python%s-venv' "$version" "$version"
      return
    fi
  done
}

# --- uv's -------------------------------------------------------------------------------------------------------------

# True if uv is there or can be installed, and its downloads can be reached.
can_uv() {
  if ! command -v uv >/dev/null; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null || return 1
    can_reach "${PIP_INDEX_URL:-https://pypi.org/simple}/uv/" || return 1
  fi
  can_reach "${UV_PYTHON_INSTALL_MIRROR:-$PYTHON_DOWNLOADS}"
}

# can_reach URL: something answers there within 10 s.
can_reach() {
  local program='import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=10).read(1)'
  if [[ $1 == file://* ]]; then
    [[ -e ${1#file://} ]]
  elif command -v curl >/dev/null; then
    curl --silent --fail --location --max-time 10 --output /dev/null "$1"
  else
    python3 -c "$program" "$1" 2>/dev/null
  fi
}

# fetch_python: CPython from uv's builds, in PYTHON_HOME. uv itself is not kept.
fetch_python() {
  local uv folder=$PYTHON_HOME/.uv
  uv=$(command -v uv) || {
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
      DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv || return
    fi
    python3 -m venv --clear "$folder" || return
    "$folder/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off uv || return
    uv=$folder/bin/uv
  }
  UV_PYTHON_INSTALL_DIR=$PYTHON_HOME UV_PYTHON_INSTALL_BIN=0 UV_CACHE_DIR=$folder-cache \
    "$uv" python install --no-config "$MANAGED_PYTHON" || return
  rm -rf "$folder" "$folder-cache"
}

# obtain_python: PYTHON from where plan_python found one; apt's is installed by ensure_system.
obtain_python() {
  local target
  case $PYTHON_FROM in
    wheels)
      target=$(brought_python)
      step "Putting Python from $PYTHON_PLACE into ${target#"${MOE2_INSTALL_ROOT:-}"}" take_python "$target"
      note_done "${target#"${MOE2_INSTALL_ROOT:-}"}, the Python that moe2 runs with"
      ;;
    uv)
      target=$PYTHON_HOME/cpython-$MANAGED_PYTHON
      step "Fetching CPython $MANAGED_PYTHON with uv into /opt/moe2/python" fetch_python
      note_done "/opt/moe2/python, CPython $MANAGED_PYTHON as built for uv (python-build-standalone)"
      ;;
    *) return ;;
  esac
  if is_dry || [[ $PYTHON_FROM == wheels ]]; then
    PYTHON=$target/bin/python3
  else
    PYTHON=$(find_python) || die "the Python in $PYTHON_HOME does not run here; name one in PYTHON."
  fi
}
