# Releases: one virtual environment for each state of the checkout, side by side under /opt/moe2/releases. The symlink
# /opt/moe2/current names the one in use, so that an upgrade is one rename, and a failed one changes nothing.

readonly HOME_DIR=$ROOT/opt/moe2
readonly CURRENT=$HOME_DIR/current
readonly PIP_OPTIONS=(--disable-pip-version-check --no-input --progress-bar off)
# Where pip looks besides its index; --wheels makes it that folder alone.
PIP_SOURCES=()

# The extras for the daemons in ROLES on this kind of host.
extras_for() {
  local role extras=()
  for role in "$@"; do
    extras+=("$role")
    if [[ $role == coordinator ]]; then
      # Asked for once, it is kept: the configuration may name a database by now.
      if [[ $POSTGRESQL == yes ]] || has_postgresql; then extras+=(postgresql); fi
      continue
    fi
    case $HOST_KIND in
      jetson)
        # jetson-stats tells what nothing needs; a folder of wheels without it is complete all the same.
        if [[ -z $WHEELS ]] || compgen -G "$WHEELS/jetson_stats-*" >/dev/null; then extras+=(jetson); fi
        ;;
      nvidia) extras+=(nvidia) ;;
    esac
  done
  local IFS=,
  printf '%s' "${extras[*]}"
}

# Whether the release in use can speak to PostgreSQL.
has_postgresql() { compgen -G "$CURRENT/lib/python*/site-packages/psycopg" >/dev/null; }

# Changes when the program, what it needs or the way llama.cpp is built changes. Arguments: extras, backend.
release_fingerprint() {
  {
    printf '%s\n' "$@" "$("$PYTHON" -c 'import sys; print(sys.version_info[:2])' 2>/dev/null || true)"
    cat pyproject.toml constraints.txt
    find agent common coordinator -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
  } | sha256sum | cut -c 1-12
}

# ensure_release ROLES…: sets RELEASE, a folder with moe2 for these daemons, built if there is none yet.
ensure_release() {
  local extras version fingerprint sources=()
  extras=$(extras_for "$@")
  BACKEND=none
  if [[ ,$extras, == *,agent,* ]]; then
    choose_backend
    if has_llama_wheel; then ensure_system libgomp; else ensure_system libgomp compiler; fi
    ensure_llama_wheel
    sources=(--find-links "$(llama_folder)")
  else
    ensure_system
  fi
  version=$(sed -nE 's/^__version__ = "(.*)"/\1/p' common/__init__.py)
  fingerprint=$(release_fingerprint "$extras" "$(basename "$(llama_folder)")")
  RELEASE=$HOME_DIR/releases/$version-$fingerprint
  if [[ -e $RELEASE/.complete ]]; then
    kept "moe2 $version with [$extras] is built: $RELEASE"
    return
  fi
  # The remains of an attempt that failed.
  if [[ -e $RELEASE ]]; then step "Removing an unfinished release" rm -rf "$RELEASE"; fi
  step "Making a folder for releases" install -d -m 0755 "$HOME_DIR/releases"
  step "Creating a virtual environment with ${PYTHON##*/}" "$PYTHON" -m venv "$RELEASE"
  step "Installing moe2[$extras] $version" "$RELEASE/bin/python" -m pip install "${PIP_OPTIONS[@]}" \
    "${PIP_SOURCES[@]}" "${sources[@]}" --constraint constraints.txt ".[$extras]"
  if [[ $BACKEND != none ]]; then check_llama; fi
  if ! is_dry; then : >"$RELEASE/.complete"; fi
  note_done "moe2 $version with [$extras] in $RELEASE"
  if [[ ,$extras, == *,jetson,* ]]; then
    note_done "jetson-stats beside it, which is under the AGPL-3.0, for the power mode and the fan"
  fi
}

# point_current_to RELEASE: one rename, so that there is no moment without a release.
point_current_to() {
  ln -sfn "${1#"$HOME_DIR/"}" "$CURRENT.new"
  mv -T "$CURRENT.new" "$CURRENT"
}

# The folder of the release in use; nothing if there is none.
current_release() { if [[ -L $CURRENT ]]; then printf '%s/%s' "$HOME_DIR" "$(readlink "$CURRENT")"; fi; }

# remove_old_releases IN_USE BEFORE: all others, which are of no use any more.
remove_old_releases() {
  local folder
  for folder in "$HOME_DIR"/releases/*/; do
    folder=${folder%/}
    if [[ $folder == "$1" || $folder == "$2" || ! -d $folder ]]; then continue; fi
    step "Removing the old release ${folder##*/}" rm -rf "$folder"
  done
}
