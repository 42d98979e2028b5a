# What of the installation is as it should be, and what to do about the rest. Changes nothing.

# Exit status: 0 all good, 1 something to mend.
doctor() {
  local role roles bad=0
  (($# == 0)) || die "doctor takes no arguments."
  SYSTEM_PYTHON=yes
  detect_host
  describe_host
  if PYTHON=${PYTHON:-$(find_python)}; then
    good "Python $("$PYTHON" -c 'import platform; print(platform.python_version())'): $PYTHON"
  else
    ill "no released Python 3.11 or newer" "./install.sh agent or coordinator gets one; with --dry-run it says from where"
  fi
  if [[ $HOST_KIND != cpu && -z $NVCC ]]; then
    ill "a GPU, but no nvcc: llama.cpp can only be built for the CPU" \
      "install the CUDA toolkit, then ./install.sh upgrade"
  fi
  if [[ $HOST_KIND == cpu ]] && has_nvidia_card; then
    ill "an NVIDIA card, but no driver that answers for it" "install NVIDIA's driver, see nvidia-smi, then ./install.sh upgrade"
  fi
  if [[ ! -d $ROOT/run/systemd/system ]]; then ill "systemd does not run here" "use ./install.sh demo"; fi
  mapfile -t roles < <(installed_roles)
  if ((${#roles[@]} == 0)); then
    say "= nothing is installed; ./install.sh coordinator or ./install.sh agent does it"
  else
    examine_release
    for role in "${roles[@]}"; do examine_role "$role"; done
  fi
  exit "$bad"
}

good() { say "✓ $1"; }

# ill "What is wrong" "What to do"
ill() {
  bad=1
  say "✗ $1"
  say "      → $2"
}

examine_release() {
  local release
  release=$(current_release)
  if [[ -n $release && -e $release/.complete ]]; then
    good "release ${release##*/}"
  else
    ill "$CURRENT names no complete release" "./install.sh upgrade"
  fi
  if [[ -e $LLAMA_DIR && $HOST_KIND != cpu && $(tail -n 1 "$release/.gpu-offload" 2>/dev/null) != True ]]; then
    ill "llama.cpp does not use the GPU" "./install.sh upgrade, and see what it says about CUDA"
  fi
}

examine_role() {
  local role=$1 unit=moe2-$1.service config=$CONFIG_DIR/$1.toml said code=0
  if [[ ! -e $config ]]; then
    ill "/etc/moe2/$role.toml is missing" "./install.sh $role writes a new one"
  elif said=$("$CURRENT/bin/moe2-$role" check-config "${CHECK_OPTIONS[@]}" --config "$config" 2>&1); then
    good "/etc/moe2/$role.toml"
  else
    ill "$said" "edit /etc/moe2/$role.toml, then: systemctl restart $unit"
  fi
  if ! systemctl is-enabled --quiet "$unit"; then ill "$unit does not start at boot" "systemctl enable $unit"; fi
  if ! is_active "$role"; then
    ill "$unit is not running" "journalctl -u $unit; systemctl start $unit"
    if [[ ! -e $TOKEN ]]; then ill "/etc/moe2/agent-token is missing" "bring it from the coordinator's host"; fi
    return
  fi
  said=$("$CURRENT/bin/moe2-$role" status 2>/dev/null) || code=$?
  case $code in
    0) good "$unit is running and healthy" ;;
    1) ill "$unit is running, but degraded" "moe2-$role status shows more; docs/troubleshooting.md explains each" ;;
    *) ill "$unit is running, but its status cannot be read" "run this as root; otherwise: journalctl -u $unit" ;;
  esac
  tell_warnings <<<"$said"
  if [[ $role == agent ]]; then examine_as_service; fi
}

# The sensors and the GPU as the agent's service sees them: as root, its doctor takes the unit's user, groups and rules.
examine_as_service() {
  local said
  "$CURRENT/bin/moe2-agent" doctor || true
  said=$("$CURRENT/bin/moe2-agent" doctor --json 2>/dev/null) || true
  if grep -q '"gpu_usable": false' <<<"$said"; then
    ill "the agent's service cannot use the GPU" "do what the agent's doctor says above, then: systemctl restart moe2-agent"
  elif grep -q '"gpu_usable": true' <<<"$said"; then
    good "the agent's service can use the GPU"
  fi
}

# Health warnings out of a status in plain lines (stdin), notices too: the daemons see what nobody sees from outside.
tell_warnings() {
  sed -n -e 's/^warning severity=[a-z]* code=\([^ ]*\) message=\(.*\) remedy=\(.*\)$/  ! \1: \2\n      → \3/' \
    -e 's/: "\(.*\)"\n/: \1\n/' -e 's/→ "\(.*\)"$/→ \1/' -e 's/\\\(["\\]\)/\1/g' -e '/^  ! /p'
}
