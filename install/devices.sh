# The device nodes of this host's GPU: what the agent's unit has to let through, and the groups that own them.
# Orin's driver registers its nodes under the device's own name (17000000.gpu, 17000000.ga10b), others under nvidia* or
# nvhost*; a few have no class of their own (major number 10) and are named by their path.

# Patterns below /dev; a folder's nodes are named by DIR/*.
readonly GPU_NODES=('nvidia*' 'nvidia-caps/*' 'nvidia-caps-imex-channels/*' nvmap nvsciipc 'nvhost*' 'nvgpu/*'
  'nvgpu/*/*' 'host1x*' 'dri/*' dxg)
# Classes that a driver may register before it makes nodes.
readonly GPU_CLASSES='^(nvidia.*|nvhost.*|nvgpu.*|host1x.*|drm|[0-9a-f]+\.(gpu|g[abvk][0-9]+[0-9a-z]*))$'
readonly MISC_MAJOR=10

# node_facts: one line for each node of the GPU: its major number, the group that owns it, its path below /dev.
node_facts() {
  local pattern node major group
  for pattern in "${GPU_NODES[@]}"; do
    # shellcheck disable=SC2086 # The pattern is to be expanded.
    for node in "$ROOT"/dev/$pattern; do
      read -r major group < <(stat --dereference --format='%t %G' "$node" 2>/dev/null) || continue
      # Files and folders have the number 0; a name with a space would break the unit's line.
      if ((16#$major == 0)) || [[ $node == *[[:space:]]* ]]; then continue; fi
      printf '%d %s %s\n' "$((16#$major))" "$group" "${node#"$ROOT"}"
    done
  done
}

# class_names: "MAJOR NAME" for each class of character devices that the kernel knows.
class_names() {
  sed -n '/^Character devices:/,/^$/s/^ *\([0-9][0-9]*\) \(.*\)$/\1 \2/p' "$ROOT/proc/devices" 2>/dev/null || true
}

# device_rules: what DeviceAllow= has to name, each once.
device_rules() {
  local major name path classes=() wanted=()
  declare -A class_of=()
  while read -r major name; do
    class_of[$major]=${class_of[$major]:-$name}
    if [[ $name =~ $GPU_CLASSES ]]; then classes+=("char-$name"); fi
  done < <(class_names)
  while read -r major _ path; do
    if ((major == MISC_MAJOR)) || [[ -z ${class_of[$major]:-} ]]; then
      wanted+=("$path")
    else
      wanted+=("char-${class_of[$major]}")
    fi
  done < <(node_facts)
  # The names of classes with a slash, such as /dev/vc/0, cannot be meant.
  printf '%s\n' "${classes[@]}" "${wanted[@]}" | grep -vE '^$|^char-.*[/[:space:]]' | LC_ALL=C sort -u
}

# device_groups: the groups that exist of those that own such nodes by custom, and those that own them here.
device_groups() {
  local group
  {
    for group in "${DEVICE_GROUPS[@]}"; do
      if getent group "$group" >/dev/null; then say "$group"; fi
    done
    node_facts | cut -d ' ' -f 2 | grep -vxE 'root|UNKNOWN' || true
  } | sort -u
}

# devices_text: the drop-in for the unit.
devices_text() {
  local rule
  say "# Written by install.sh from /proc/devices and /dev: the devices of this host's GPU, beside those in the unit."
  say "# To lift all device rules, systemctl edit moe2-agent: [Service], DevicePolicy=auto, and an empty DeviceAllow=."
  say "[Service]"
  while read -r rule; do say "DeviceAllow=$rule rw"; done < <(device_rules)
}
