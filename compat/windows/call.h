/* SPDX-License-Identifier: Apache-2.0 */
/* From an export to a request and back: HRESULT, result and error record as a Windows caller expects them. */
#ifndef SAMEWIRE_CALL_H
#define SAMEWIRE_CALL_H

#include "platform.h"

#define RESULT(code) ((HRESULT)(code))
#define HR_NOTIMPL RESULT(0x80004001u)
#define HR_POINTER RESULT(0x80004003u)
#define HR_ACCESSDENIED RESULT(0x80070005u)
#define HR_HANDLE RESULT(0x80070006u)
#define HR_OUTOFMEMORY RESULT(0x8007000eu)
#define HR_INVALIDARG RESULT(0x80070057u)
#define HR_NO_SERVER RESULT(0x800706bau) /* RPC_S_SERVER_UNAVAILABLE */
#define HR_FAIL RESULT(0x80004005u)

/*
 * Carries a call to the daemon. text: the caller's JSON, NULL or empty = none. result: where the answer's text goes,
 * NULL = nowhere. error: where an error record goes, may be NULL. Both are for CoTaskMemFree, and NULL when there is
 * nothing. id: takes the ID of the object that is answered; NULL = not wanted.
 */
HRESULT call(const char *method, const char *path, PCWSTR text, PWSTR *result, PWSTR *error, char *id);

/* The error record of a call that did not get as far as the daemon. Returns its code. */
HRESULT refuse(HRESULT code, const char *why, PWSTR *error);

#endif
