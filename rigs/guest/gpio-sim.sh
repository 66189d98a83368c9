# Rig A: gpio-sim poses as a Raspberry Pi 4; channels on GPIO17 and GPIO27, idle high.
lines=2
bank=/sys/kernel/config/gpio-sim/pi/bank0

setup() {
  modprobe configfs
  mount -t configfs none /sys/kernel/config
  insmod /rig/gpio-sim-rig.ko || { echo "@failed no gpio-sim"; poweroff -f; }
  mkdir /sys/kernel/config/gpio-sim/pi $bank
  echo 28 >$bank/num_lines
  echo pinctrl-bcm2711 >$bank/label
  for line in 17 22 27; do
    mkdir $bank/line$line
    echo GPIO$line >$bank/line$line/name
  done
  mkdir $bank/line22/hog
  echo heating >$bank/line22/hog/name
  echo input >$bank/line22/hog/direction
  echo 1 >/sys/kernel/config/gpio-sim/pi/live
  chip=/sys/devices/platform/$(cat /sys/kernel/config/gpio-sim/pi/dev_name)/$(cat $bank/chip_name)
  # What rppal looks for: the model of the board, and the levels of all lines, which are high.
  printf 'Revision\t: c03115\n' >/run/cpuinfo
  mount -o bind /run/cpuinfo /proc/cpuinfo
  dd if=/dev/zero of=/dev/gpiomem bs=4096 count=1 2>/dev/null
  printf '\377\377\377\377' | dd of=/dev/gpiomem bs=1 seek=52 conv=notrunc 2>/dev/null
  drive 1 17=1 27=1
}

drive() { wave "$chip" "$@"; }

channels() {
  for channel in "import ${4:-17}" "export 27"; do
    printf '[[channel]]\nname = "%s"\nimpulses_per_kwh = 1000\n' "${channel% *}"
    printf '[channel.%s]\ndebounce_ms = %s\nminimum_width_ms = %s\n' "$1" "$2" "$3"
    if [ "$1" = rppal ]; then echo "gpio = ${channel#* }"; else echo "line = \"GPIO${channel#* }\""; fi
  done
}

# 4 pulses of 30 to 100 ms on each line, overlapping, N times.
train() {
  drive "$1" 17=0 30 17=1 30 27=0 10 17=0 40 27=1 30 17=1 40 27=0 17=0 100 27=1 17=1 50 \
    17=0 60 27=0 30 17=1 50 27=1 75 27=0 30 27=1 30
}

# 6 of them, all shorter than the minimum width, N times.
glitches() {
  drive "$1" 17=0 2 17=1 60 27=0 8 27=1 40 17=0 12 17=1 50 \
    27=0 1 27=1 50 17=0 10 17=1 60 27=0 5 27=1 50
}

# One pulse on each line, with 5 bounces as they begin and end, N times.
bouncing() {
  drive "$1" 17=0 1 17=1 2 17=0 3 17=1 1 17=0 50 17=1 2 17=0 2 17=1 60 \
    27=0 4 27=1 1 27=0 60 27=1 3 27=0 1 27=1 70
}

# A train, in the middle of which the date is set an hour ahead, later two hours back.
dates() {
  train 8
  date -s @$(($(date +%s) + 3600)) >/dev/null
  train 8
  date -s @$(($(date +%s) - 7200)) >/dev/null
  train 8
  date -s @$(($(date +%s) + 3600)) >/dev/null
}

scenarios() {
  config /tmp/$1.toml "$1"
  config /tmp/$1-raw.toml "$1" 0
  count /tmp/$1.toml 16 train 20
  result "$1: pulses of 30 to 100 ms" 80+80 "$counted"
  edges /tmp/$1-raw.toml glitches 10
  result "$1: glitches of 1 to 12 ms" 0+0 "$counted" 60 "$rejected"
  edges /tmp/$1-raw.toml bouncing 10
  result "$1: bouncing edges" 10+10 "$counted" 50 "$rejected"
  count /tmp/$1.toml 6 bouncing 10
  result "$1: bouncing, kernel debounce" 10+10 "$counted"
  count /tmp/$1.toml 18 dates
  result "$1: date set ahead and back" 96+96 "$counted"
  config /tmp/held.toml "$1" 5 20 22
  meter-agent count --config /tmp/held.toml --seconds 1 >/tmp/log 2>&1
}

phase_1() {
  scenarios gpiocdev
  check "gpiocdev: line held by a driver" /tmp/log GPIO22 busy heating
  scenarios rppal
  check "rppal: line held by a driver" /tmp/log GPIO22 busy
  kills /tmp/gpiocdev.toml gpiocdev
  kills /tmp/rppal.toml rppal
  power_cut /tmp/rppal.toml
}

phase_2() {
  config /tmp/rppal.toml rppal
  after_power_cut /tmp/rppal.toml
}

single() { drive "$1" 17=0 40 17=1 60; }
