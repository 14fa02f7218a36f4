// SPDX-License-Identifier: Apache-2.0
/*
 * Drives every register of the edu device (QEMU's docs/specs/edu.rst) from user space.
 *
 *	edu registers		all registers, and DMA both ways; interrupts masked
 *	edu sizes		accesses that no register has: all ones (QEMU's device faults instead)
 *	edu refused		DMA that must move nothing (QEMU's device gives up instead)
 *	edu intx		interrupts by wire, seen through uio_pci_generic (load that module first)
 *	edu msi DONOR		interrupts by message: borrows the message of vector 0 of the virtio device DONOR
 *				(0000:00:01.0), whose count in /proc/interrupts then has to rise with ours.
 *				Needs iomem=relaxed on the kernel command line, since DONOR has a driver.
 *
 * Prints "edu: CHECK ok" or "edu: CHECK FAIL (what was seen)" a line; exits with 1 after any FAIL, and with 2
 * when it could not go on.
 */
#include "edu.h"
#include <poll.h>

static void test_plain_registers(void)
{
	check_equal(get(ID), 0x010000ED, "identification");
	put(ID, 0);
	check_equal(get(ID), 0x010000ED, "identification is read-only");
	put(LIVENESS, 0x12345678);
	check_equal(get(LIVENESS), (uint32_t)~0x12345678, "liveness inverts");
	put(LIVENESS, 0xFFFFFFFF);
	check_equal(get(LIVENESS), 0, "liveness inverts all ones");
	check_equal(get(0x40), 0xFFFFFFFF, "what is no register reads all ones");
	check_equal(get(BUFFER), 0xFFFFFFFF, "the buffer cannot be seen");
	check_equal(get(BAR_SIZE - 4), 0xFFFFFFFF, "end of the BAR reads all ones");
}

static void sizes(void)
{
	put(LIVENESS, 0xFFFFFFFF);
	check_equal(*(volatile uint8_t *)(bar + ID), 0xFF, "byte access reads all ones");
	check_equal(*(volatile uint16_t *)(bar + LIVENESS), 0xFFFF, "halfword access reads all ones");
	check_equal(get_wide(ID), ~0ULL, "wide access to a narrow register reads all ones");
	*(volatile uint8_t *)(bar + LIVENESS) = 1;
	*(volatile uint16_t *)(bar + LIVENESS) = 1;
	put_wide(LIVENESS - 4, ~0ULL);
	check_equal(get(LIVENESS), 0, "writes of another size are ignored");
}

static void test_factorial(void)
{
	static const struct { uint32_t n, result; } cases[] = {
		{ 0, 1 }, { 1, 1 }, { 5, 120 }, { 12, 479001600 }, { 13, 1932053504 }, { 34, 0 }, { 0xFFFFFFFF, 0 },
	};
	char what[40];

	put(STATUS, 0);
	for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
		put(FACTORIAL, cases[i].n);
		check(wait_clear(STATUS, COMPUTING), "factorial ends", get(STATUS));
		snprintf(what, sizeof what, "factorial of %u", cases[i].n);
		check_equal(get(FACTORIAL), cases[i].result, what);
	}
	check_equal(get(INTERRUPT_STATUS), 0, "factorial without interrupt");
	put(STATUS, 0xFFFFFFFF);
	check_equal(get(STATUS), INTERRUPT_WHEN_DONE, "only one bit of status can be set");
	put(FACTORIAL, 4);
	check(wait_clear(STATUS, COMPUTING), "factorial with interrupt ends", get(STATUS));
	check_equal(get(INTERRUPT_STATUS), FACTORIAL_DONE, "factorial sets its interrupt");
	put(ACKNOWLEDGE, FACTORIAL_DONE);
	check_equal(get(INTERRUPT_STATUS), 0, "acknowledging clears it");
	put(STATUS, 0);
}

static void test_interrupt_status(void)
{
	put(RAISE, 0xF0);
	put(RAISE, 0x0F);
	check_equal(get(INTERRUPT_STATUS), 0xFF, "raise adds bits");
	check(config_read(config, PCI_STATUS, 2) & 8, "PCI status shows the interrupt", config_read(config, PCI_STATUS, 2));
	put(ACKNOWLEDGE, 0x3C);
	check_equal(get(INTERRUPT_STATUS), 0xC3, "acknowledge takes bits away");
	put(ACKNOWLEDGE, 0xFFFFFFFF);
	check_equal(get(INTERRUPT_STATUS), 0, "acknowledge takes all away");
	check(!(config_read(config, PCI_STATUS, 2) & 8), "PCI status shows none", config_read(config, PCI_STATUS, 2));
	check_equal(get(RAISE), 0xFFFFFFFF, "raise cannot be read");
}

static int transfer(uint64_t source, uint64_t destination, uint64_t count, uint64_t flags)
{
	put_wide(SOURCE, source);
	put_wide(DESTINATION, destination);
	put_wide(COUNT, count);
	put_wide(COMMAND, RUN | flags);
	return wait_clear(COMMAND, RUN);
}

static int same(const uint8_t *a, const uint8_t *b, size_t count)
{
	return !memcmp(a, b, count);
}

static void test_dma(uint8_t *out, uint8_t *in)
{
	uint64_t seed = 1, from = physical(out), to = physical(in);

	for (unsigned i = 0; i < PAGE; i++)
		out[i] = next(&seed);
	if (!from || !to)
		die("the physical address of memory is not to be had");
	put_wide(SOURCE, 0x0123456789ABCDEF);
	check_equal(get_wide(SOURCE), 0x0123456789ABCDEF, "DMA source keeps 64 bits");
	put_wide(COMMAND, TO_RAM | INTERRUPT_AT_END);
	check(!(get_wide(COMMAND) & RUN), "DMA does not start without run", get_wide(COMMAND));
	check(transfer(from, BUFFER, PAGE, 0), "DMA to the device ends", get_wide(COMMAND));
	check(transfer(BUFFER, to, PAGE, TO_RAM), "DMA to memory ends", get_wide(COMMAND));
	check(same(in, out, PAGE), "DMA brought a page there and back", in[0]);
	memset(in, 0, PAGE);
	check(transfer(BUFFER + 100, to + 9, 333, TO_RAM), "DMA of a part ends", get_wide(COMMAND));
	check(same(in + 9, out + 100, 333) && !in[8] && !in[9 + 333], "DMA of a part is exact", in[9]);
	check_equal(get(INTERRUPT_STATUS), 0, "DMA without interrupt");
	check(transfer(BUFFER, to, 16, TO_RAM | INTERRUPT_AT_END), "DMA with interrupt ends", get_wide(COMMAND));
	check_equal(get(INTERRUPT_STATUS), DMA_DONE, "DMA sets its interrupt");
	put(ACKNOWLEDGE, DMA_DONE);
	put_wide(SOURCE, from);
	put_wide(COMMAND, RUN);
	put_wide(SOURCE, 1);
	check_equal(get_wide(SOURCE), from, "DMA registers do not change while it runs");
	check(wait_clear(COMMAND, RUN), "DMA still ends", get_wide(COMMAND));
}

static void refused(uint8_t *in, const char *what, uint64_t source, uint64_t destination, uint64_t count)
{
	char text[100];

	memset(in, 0xA5, PAGE);
	snprintf(text, sizeof text, "refused DMA ends: %s", what);
	check(transfer(source, destination, count, TO_RAM), text, get_wide(COMMAND));
	for (unsigned i = 0; i < PAGE; i++)
		if (in[i] != 0xA5) {
			check(0, text, in[i]);
			return;
		}
	snprintf(text, sizeof text, "refused DMA moved nothing: %s", what);
	check(1, text, 0);
}

static void refused_dma(void)
{
	uint8_t *in = locked_page();
	uint64_t to = physical(in);

	refused(in, "beyond the buffer", BUFFER + PAGE, to, 1);
	refused(in, "over the buffer's end", BUFFER + 1, to, PAGE);
	refused(in, "before the buffer", BUFFER - 1, to, 2);
	refused(in, "four GiB", BUFFER, to, 1ULL << 32);
	refused(in, "a count that wraps", BUFFER, to, ~0ULL);
	refused(in, "an address that wraps", BUFFER, ~0ULL - 8, 64);
	refused(in, "no memory there", BUFFER, 0x1000, 64);
	set_command(MEMORY | INTX_DISABLE);
	refused(in, "no bus master", BUFFER, to, 64);
	set_command(MEMORY | BUS_MASTER | INTX_DISABLE);
}

static void registers(void)
{
	uint8_t *out = locked_page(), *in = locked_page();

	test_plain_registers();
	test_factorial();
	test_interrupt_status();
	test_dma(out, in);
}

/* Interrupts by wire. uio_pci_generic masks the wire in the PCI command register at each interrupt. */

static int open_uio(void)
{
	char path[400];
	int fd;

	if (write_text("/sys/bus/pci/drivers/uio_pci_generic/new_id", "1234 11e8") && errno != EEXIST)
		die("uio_pci_generic does not take the device");
	snprintf(path, sizeof path, "%s/uio/uio0", device);
	if (access(path, F_OK))
		die("%s", path);
	fd = open("/dev/uio0", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		die("/dev/uio0");
	return fd;
}

/* The number of interrupts so far, once there is a new one; -1 when none comes in time. */
static int wait_interrupt(int fd, int milliseconds)
{
	struct pollfd wait = { .fd = fd, .events = POLLIN };
	int count;

	if (poll(&wait, 1, milliseconds) != 1 || read(fd, &count, 4) != 4)
		return -1;
	return count;
}

static void unmask(void) { set_command(MEMORY | BUS_MASTER); }

static void intx(void)
{
	int fd = open_uio(), count;

	unmask();
	put(RAISE, 1);
	count = wait_interrupt(fd, 10000);
	check(count > 0, "INTx arrives", count);
	check(config_read(config, PCI_COMMAND, 2) & INTX_DISABLE, "INTx was masked by its handler", 0);
	check_equal(wait_interrupt(fd, 300), -1, "masked INTx does not arrive");
	unmask();
	check_equal(wait_interrupt(fd, 10000), count + 1, "INTx still up arrives again when unmasked");
	put(ACKNOWLEDGE, 1);
	unmask();
	check_equal(wait_interrupt(fd, 300), -1, "acknowledged INTx does not arrive");
	put(STATUS, INTERRUPT_WHEN_DONE);
	put(FACTORIAL, 6);
	check_equal(wait_interrupt(fd, 10000), count + 2, "INTx of the factorial arrives");
	check_equal(get(INTERRUPT_STATUS), FACTORIAL_DONE, "INTx was the factorial's");
	put(ACKNOWLEDGE, FACTORIAL_DONE);
	put(STATUS, 0);
	unmask();
	check(transfer(BUFFER, physical(locked_page()), 8, TO_RAM | INTERRUPT_AT_END), "DMA ends", 0);
	check_equal(wait_interrupt(fd, 10000), count + 3, "INTx of DMA arrives");
	put(ACKNOWLEDGE, DMA_DONE);
}

/* Interrupts by message. */

static unsigned long donor_count(const char *donor)
{
	char wanted[64], line[4096];
	unsigned long total = 0;
	FILE *table = fopen("/proc/interrupts", "r");

	if (!table)
		die("/proc/interrupts");
	snprintf(wanted, sizeof wanted, "-%s", donor);
	while (fgets(line, sizeof line, table)) {
		char *at = strchr(line, ':'), *end;

		if (!at || !strstr(line, wanted) || !strstr(line, "-config"))
			continue;
		for (at++;; at = end) {
			unsigned long value = strtoul(at, &end, 10);

			if (end == at)
				break;
			total += value;
		}
	}
	fclose(table);
	return total;
}

static void donors_message(const char *donor, uint32_t message[3])
{
	char directory[300], path[400];
	volatile uint32_t *table;
	unsigned at, where;
	int fd;

	snprintf(directory, sizeof directory, "/sys/bus/pci/devices/%s", donor);
	snprintf(path, sizeof path, "%s/config", directory);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die("%s", path);
	at = capability(fd, MSIX);
	if (!at)
		die("%s has no MSI-X", donor);
	where = config_read(fd, at + 4, 4);
	table = map_resource(directory, where & 7, (where & ~7u) + PAGE);
	for (unsigned i = 0; i < 3; i++)
		message[i] = table[(where & ~7u) / 4 + i];
	close(fd);
}

static int count_reaches(const char *donor, unsigned long wanted)
{
	for (int tries = 0; tries < 1000; tries++) {
		if (donor_count(donor) >= wanted)
			return 1;
		pause_ms(10);
	}
	return 0;
}

static void msi(const char *donor)
{
	uint32_t message[3];
	unsigned at = capability(config, MSI);
	unsigned long before;

	check(at, "there is an MSI capability", at);
	if (!at)
		return;
	donors_message(donor, message);
	check(message[0] || message[1], "the donor has a message", message[2]);
	check_equal(config_read(config, at + 2, 2) & 0xFF, 0x80, "MSI has one vector and 64 bits");
	config_write(at + 4, message[0], 4);
	config_write(at + 8, message[1], 4);
	config_write(at + 12, message[2], 2);
	before = donor_count(donor);
	put(RAISE, 1);
	pause_ms(200);
	check_equal(donor_count(donor), before, "no message while MSI is off");
	put(ACKNOWLEDGE, 1);
	config_write(at + 2, 1, 2);
	put(RAISE, 1);
	check(count_reaches(donor, before + 1), "MSI arrives", donor_count(donor) - before);
	put(RAISE, 1);
	check(count_reaches(donor, before + 2), "every raise sends a message", donor_count(donor) - before);
	put(ACKNOWLEDGE, 0xFFFFFFFF);
	put(STATUS, INTERRUPT_WHEN_DONE);
	put(FACTORIAL, 6);
	check(count_reaches(donor, before + 3), "MSI of the factorial arrives", donor_count(donor) - before);
	put(ACKNOWLEDGE, 0xFFFFFFFF);
	put(STATUS, 0);
	check(transfer(BUFFER, physical(locked_page()), 8, TO_RAM | INTERRUPT_AT_END), "DMA ends", 0);
	check(count_reaches(donor, before + 4), "MSI of DMA arrives", donor_count(donor) - before);
	put(ACKNOWLEDGE, 0xFFFFFFFF);
	pause_ms(200);
	check_equal(donor_count(donor), before + 4, "as many messages as raises");
	config_write(at + 2, 0, 2);
}

int main(int count, char **words)
{
	static const struct { const char *name; void (*run)(void); } modes[] = {
		{ "registers", registers }, { "sizes", sizes }, { "refused", refused_dma }, { "intx", intx },
	};
	const char *mode = count > 1 ? words[1] : "";
	void (*run)(void) = NULL;

	for (unsigned i = 0; i < sizeof modes / sizeof *modes; i++)
		if (count == 2 && !strcmp(mode, modes[i].name))
			run = modes[i].run;
	if (!run && (count != 3 || strcmp(mode, "msi"))) {
		fputs("usage: edu registers | sizes | refused | intx | msi DONOR\n", stderr);
		return 2;
	}
	find();
	if (run)
		run();
	else
		msi(words[2]);
	printf("edu: %s: %s\n", mode, failures ? "FAILED" : "passed");
	return failures ? 1 : 0;
}
