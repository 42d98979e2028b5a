# What systemd is given: users, folders, units, and the daemons' starts.

readonly UNIT_DIR=$ROOT/etc/systemd/system
readonly SYSUSERS_FILE=$ROOT/etc/sysusers.d/moe2.conf
readonly TMPFILES_FILE=$ROOT/etc/tmpfiles.d/moe2.conf
readonly COMMAND_DIR=$ROOT/usr/local/bin
readonly ROLES=(coordinator agent)
# Groups that own GPUs' device nodes and jetson-stats' socket.
readonly DEVICE_GROUPS=(video render jtop)
readonly NODES_UNIT=$UNIT_DIR/moe2-gpu-nodes.service
readonly HEALTHY_WITHIN_S=30

unit_file() { printf '%s/moe2-%s.service' "$UNIT_DIR" "$1"; }

# installed_roles [ROLE]: those that this host has, and this one, one a line and always in the same order.
installed_roles() {
  local role
  for role in "${ROLES[@]}"; do
    if [[ $role == "${1:-}" || -e $(unit_file "$role") ]]; then say "$role"; fi
  done
}

# put_text "What it is" TARGET TEXT: write a file of ours, if it is not so already. Sets CHANGED.
put_text() {
  local label=$1 target=$2 text=$3
  if [[ -f $target && $(cat "$target") == "$text" ]]; then return; fi
  # shellcheck disable=SC2034 # Who calls looks at it.
  CHANGED=yes
  step "Writing $label: ${target#"$ROOT"}" write_text "$target" 0644 "$text"
}

# write_text TARGET MODE TEXT: complete or not at all, and never readable by more than MODE says.
write_text() {
  install -d -m 0755 "${1%/*}"
  install -m "$2" /dev/null "$1.new"
  printf '%s\n' "$3" >"$1.new"
  mv "$1.new" "$1"
}

# The users exist, and the folders that units do not make.
ensure_users() {
  local CHANGED=no
  put_text "the users' list" "$SYSUSERS_FILE" "$(cat systemd/sysusers.conf)"
  put_text "the list of folders and rights" "$TMPFILES_FILE" "$(cat systemd/tmpfiles.conf)"
  if [[ $CHANGED == yes ]] || ! getent passwd moe2-agent >/dev/null || ! getent passwd moe2-coordinator >/dev/null; then
    step "Making the users moe2-agent and moe2-coordinator" systemd-sysusers "$SYSUSERS_FILE"
    step "Making /etc/moe2" systemd-tmpfiles --create "$TMPFILES_FILE"
    note_done "users moe2-agent and moe2-coordinator, group moe2"
  fi
}

# The unit of a role as this host's systemd knows it: what came with a later release it would complain about at each reload.
unit_text() {
  local newer='' version=${SYSTEMD_VERSION:-999}
  if ((version < 254)); then newer+='|RestartSteps|RestartMaxDelaySec'; fi
  if ((version < 248)); then newer+='|PrivateIPC'; fi
  if ((version < 247)); then newer+='|LoadCredential|SetCredential|ProtectProc|ProcSubset'; fi
  if [[ -z $newer ]]; then
    cat "systemd/moe2-$1.service"
  else
    grep -vE "^(${newer#|})=" "systemd/moe2-$1.service"
  fi
}

# Groups that do not exist would keep the unit from starting; so they are named here and not in the unit.
groups_text() {
  local found
  mapfile -t found < <(device_groups)
  say "# Written by install.sh: of ${DEVICE_GROUPS[*]} the groups that this host has, and the owners of its GPU's nodes."
  say "[Service]"
  say "SupplementaryGroups=${found[*]}"
}

# install_units ROLES…: sets CHANGED where systemd has something new to read.
install_units() {
  local role
  CHANGED=no
  for role in "$@"; do
    put_text "the unit" "$(unit_file "$role")" "$(unit_text "$role")"
    if [[ $role == agent ]]; then
      put_text "the groups of the agent" "$(unit_file agent).d/10-groups.conf" "$(groups_text)"
      put_text "the devices of the agent" "$(unit_file agent).d/20-devices.conf" "$(devices_text)"
      put_text "the unit that makes device nodes" "$NODES_UNIT" "$(cat systemd/moe2-gpu-nodes.service)"
    fi
    if [[ ! -L $COMMAND_DIR/moe2-$role ]]; then
      step "Linking the command moe2-$role" ln -sfn "/opt/moe2/current/bin/moe2-$role" "$COMMAND_DIR/moe2-$role"
    fi
  done
  if [[ $CHANGED == yes ]]; then step "Telling systemd about the units" systemctl daemon-reload; fi
}

is_active() { systemctl is-active --quiet "moe2-$1.service"; }

# start ROLE: enabled and running. The unit is started again if RESTART is yes.
start_role() {
  local unit=moe2-$1.service
  if ! systemctl is-enabled --quiet "$unit" 2>/dev/null; then step "Enabling $unit" systemctl enable "$unit"; fi
  if is_dry || [[ ${RESTART:-no} == yes ]] || ! is_active "$1"; then
    attempt "Starting $unit" systemctl restart "$unit" && attempt "Waiting for $unit to answer" wait_until_up "$1"
  else
    kept "$unit is running"
  fi
}

# wait_until_up ROLE: its local socket answers, and it has not been started again meanwhile.
wait_until_up() {
  local role=$1 deadline=$((SECONDS + HEALTHY_WITHIN_S)) code
  while ((SECONDS < deadline)); do
    code=0
    "$CURRENT/bin/moe2-$role" status --json >/dev/null || code=$?
    # 0 is healthy, 1 degraded (an agent whose model is loading), 2 not running.
    if ((code <= 1)); then
      [[ $(systemctl show --property NRestarts --value "moe2-$role.service") == 0 ]] || return 1
      return 0
    fi
    systemctl is-active --quiet "moe2-$role.service" || return 1
    sleep 0.5
  done
  return 1
}

# The last words of a unit that does not start.
show_journal() {
  warn "The end of its log (journalctl -u moe2-$1):"
  journalctl --unit "moe2-$1.service" --lines 15 --no-pager --output cat >&2 2>/dev/null || true
}
