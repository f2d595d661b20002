// SPDX-License-Identifier: Apache-2.0
/* main.c - samewire-relay SOCKET: the event loop, and the few things that all parts use. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "relay.h"

#define EVENTS 256

struct counters counters;
int epoll_fd;
unsigned max_files = 1024;

static uint64_t round_ms;
static void **dead;
static size_t dead_count, dead_room;

/* The time of this round of events. */
uint64_t now_ms(void)
{
	return round_ms;
}

static void look_at_clock(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	round_ms = (uint64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int watch(struct source *source, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = source };

	return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, source->fd, &event);
}

void free_later(void *memory)
{
	if (dead_count == dead_room) {
		size_t room = dead_room ? 2 * dead_room : 256;
		void **more = realloc(dead, room * sizeof(*more));

		if (!more)
			return; /* leaked rather than used after it was freed */
		dead = more;
		dead_room = room;
	}
	dead[dead_count++] = memory;
}

static void bury(void)
{
	while (dead_count)
		free(dead[--dead_count]);
}

/* The finalizer of splitmix64: every bit of the input moves every bit of the result. */
uint64_t mix(uint64_t value)
{
	value += 0x9e3779b97f4a7c15;
	value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
	value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
	return value ^ (value >> 31);
}

void list_init(struct list *head)
{
	head->previous = head->next = head;
}

void list_add(struct list *head, struct list *entry)
{
	entry->previous = head->previous;
	entry->next = head;
	head->previous->next = entry;
	head->previous = entry;
}

void list_remove(struct list *entry)
{
	entry->previous->next = entry->next;
	entry->next->previous = entry->previous;
}

static void dispatch(struct source *source, uint32_t events)
{
	switch (source->kind) {
	case SOURCE_CONTROL_LISTENER:
		control_accept(source);
		break;
	case SOURCE_CONTROL:
		control_event(source);
		break;
	case SOURCE_TCP_LISTENER:
		if (source->fd >= 0)
			tcp_accept(source->owner);
		break;
	case SOURCE_UDP_LISTENER:
		if (source->fd >= 0)
			udp_receive(source->owner);
		break;
	case SOURCE_TCP_CLIENT:
	case SOURCE_TCP_BACKEND:
		tcp_event(source, events);
		break;
	case SOURCE_UDP_SESSION:
		udp_answer(source);
		break;
	}
}

static void run(void)
{
	struct epoll_event events[EVENTS];
	bool more = false;

	for (;;) {
		int count = epoll_wait(epoll_fd, events, EVENTS, more ? 0 : tcp_timeout_ms());

		look_at_clock();
		for (int i = 0; i < count; i++)
			dispatch(events[i].data.ptr, events[i].events);
		more = tcp_work();
		tcp_expire();
		udp_expire();
		bury();
	}
}

int main(int argc, char **argv)
{
	struct rlimit files;
	int error;

	if (argc != 2) {
		fprintf(stderr, "usage: samewire-relay CONTROL-SOCKET\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
		max_files = files.rlim_cur < UINT_MAX ? files.rlim_cur : UINT_MAX;
	}
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0) {
		perror("samewire-relay: epoll");
		return 1;
	}
	look_at_clock();
	error = control_listen(argv[1]);
	if (error) {
		fprintf(stderr, "samewire-relay: %s: %s\n", argv[1], strerror(error < -1 ? -error : errno));
		return 1;
	}
	run();
	return 0;
}
