# The way back: everything that the other commands made, but configuration and state, which only --purge removes.

uninstall() {
  local role path left=() own=()
  begin uninstall "$@"
  # The log must not lie in what is removed.
  if ! is_dry; then LOG=$(mktemp); fi
  for role in "${ROLES[@]}"; do
    if [[ ! -e $(unit_file "$role") ]]; then continue; fi
    step "Stopping moe2-$role" systemctl disable --now "moe2-$role.service"
    # Drop-ins that others made are configuration.
    remove "the unit of moe2-$role" "$(unit_file "$role")" "$(unit_file "$role").d/10-groups.conf" \
      "$(unit_file "$role").d/20-devices.conf"
    if [[ $role == agent ]]; then remove "the unit that makes device nodes" "$NODES_UNIT"; fi
    note_done "moe2-$role is stopped and removed"
  done
  if ((${#DONE[@]} > 0)); then
    step "Telling systemd about it" systemctl daemon-reload
    # A unit that had failed would be remembered.
    attempt "Forgetting former failures" systemctl reset-failed 'moe2-*' || true
  fi
  remove "the right to suspend" "$POLKIT_RULE" "$POLKIT_PKLA"
  remove "the commands" "$COMMAND_DIR/moe2-agent" "$COMMAND_DIR/moe2-coordinator"
  remove "programs" "$HOME_DIR"
  remove "log folders" "$ROOT/var/log/moe2-agent" "$ROOT/var/log/moe2-coordinator"
  remove "runtime folders" "$ROOT/run/moe2-agent" "$ROOT/run/moe2-coordinator"
  remove "the lists of users and folders" "$SYSUSERS_FILE" "$TMPFILES_FILE"
  # Debian has no such folder until somebody needs one.
  if ! is_dry && [[ -d ${SYSUSERS_FILE%/*} ]]; then rmdir --ignore-fail-on-non-empty "${SYSUSERS_FILE%/*}"; fi
  for path in "$(unit_file coordinator).d" "$(unit_file agent).d"; do
    if ! is_dry && [[ -d $path ]]; then rmdir --ignore-fail-on-non-empty "$path"; fi
    if [[ -e $path ]]; then own+=("$path"); fi
  done
  own+=("$CONFIG_DIR" "$ROOT/var/lib/moe2-agent" "$ROOT/var/lib/moe2-coordinator")
  if [[ $PURGE == yes ]]; then
    remove "configuration, tokens and state" "${own[@]}"
    remove_users
  else
    for path in "${own[@]}"; do
      if [[ -e $path ]]; then left+=("${path#"$ROOT"}"); fi
    done
    if ((${#left[@]} > 0)); then
      note_next "Kept: ${left[*]}, and the users they belong to. ./install.sh uninstall --purge removes them as well."
    fi
  fi
  summarize
  is_dry || rm -f "$LOG"
}

# remove "What it is" PATH…: those that are there.
remove() {
  local label=$1 path found=()
  shift
  for path in "$@"; do
    if [[ -e $path || -L $path ]]; then found+=("$path"); fi
  done
  if ((${#found[@]} == 0)); then return; fi
  step "Removing $label" rm -rf "${found[@]}"
  note_done "removed $label: ${found[*]#"$ROOT"}"
}

remove_users() {
  local name removed=()
  for name in moe2-agent moe2-coordinator; do
    if getent passwd "$name" >/dev/null; then
      step "Removing the user $name" userdel "$name"
      removed+=("$name")
    fi
    # userdel takes the group of the same name along, unless somebody else is in it.
    if getent group "$name" >/dev/null; then step "Removing the group $name" groupdel "$name"; fi
  done
  if getent group moe2 >/dev/null; then step "Removing the group moe2" groupdel moe2; fi
  if ((${#removed[@]} > 0)); then note_done "removed the users ${removed[*]}"; fi
}
